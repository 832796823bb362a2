package simulation

import "slices"

// Shrink makes a failing schedule shorter while it goes on failing in the same
// invariant: by leaving out ever smaller parts of its events (delta debugging), then
// by what need not be there at all. tries bounds how many runs it may take.
func Shrink(s Schedule, o Options, tries int) Schedule {
	o.Trace = nil
	first := Run(s, o).Violation
	if first == nil {
		return s
	}
	fails := func(candidate Schedule) bool {
		if tries--; tries < 0 {
			return false
		}
		v := Run(candidate, o).Violation
		return v != nil && v.Invariant == first.Invariant
	}
	for size := max(1, len(s.Events)/2); size >= 1; size /= 2 {
		for again := true; again; {
			again = false
			for from := 0; from < len(s.Events); {
				shorter := s
				shorter.Events = slices.Concat(s.Events[:from], s.Events[min(from+size, len(s.Events)):])
				if fails(shorter) {
					s, again = shorter, size == 1
				} else {
					from += size
				}
			}
		}
	}
	for _, simpler := range []func(*Schedule){
		func(s *Schedule) { s.Drift = nil },
		func(s *Schedule) { s.NoFailover = nil },
	} {
		candidate := s
		simpler(&candidate)
		if fails(candidate) {
			s = candidate
		}
	}
	return s
}
