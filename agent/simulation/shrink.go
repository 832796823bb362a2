package simulation

import "slices"

// Shrink makes a failing schedule shorter while it goes on failing in the same
// invariant: by leaving out ever smaller parts of its events (delta debugging), then
// by what need not be there at all. What is left out shifts everything that chance
// decides, so each candidate is given a few seeds. tries bounds how many runs it may
// take.
func Shrink(s Schedule, o Options, tries int) Schedule {
	o.Trace = nil
	first := Run(s, o).Violation
	if first == nil {
		return s
	}
	keep := func(candidate Schedule) bool {
		for range 4 {
			if tries--; tries < 0 {
				return false
			}
			if v := Run(candidate, o).Violation; v != nil && v.Invariant == first.Invariant {
				if candidate.Length > v.At {
					candidate.Length = v.At
				}
				if v := Run(candidate, o).Violation; v == nil || v.Invariant != first.Invariant {
					candidate.Length = s.Length
				}
				s = candidate
				return true
			}
			candidate.Seed++
		}
		return false
	}
	for size := max(1, len(s.Events)/2); size >= 1; size /= 2 {
		for again := true; again && tries > 0; {
			again = false
			for from := 0; from < len(s.Events); {
				shorter := s
				shorter.Events = slices.Concat(s.Events[:from], s.Events[min(from+size, len(s.Events)):])
				if keep(shorter) {
					again = size == 1
				} else {
					from += size
				}
			}
		}
	}
	for _, simpler := range []func(*Schedule){
		func(s *Schedule) { s.Drift = nil },
		func(s *Schedule) { s.NoFailover = nil },
		func(s *Schedule) { s.NoStream = nil },
		func(s *Schedule) { s.Adopted = false },
	} {
		candidate := s
		simpler(&candidate)
		keep(candidate)
	}
	return s
}
