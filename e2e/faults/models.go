package faults

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// kind is what an operation does.
type kind string

const (
	opRead   kind = "read"
	opWrite  kind = "write"
	opSwap   kind = "swap" // compare and swap
	opAppend kind = "append"
)

// request is one operation of a client on one key.
type request struct {
	Kind kind   `json:"kind"`
	Key  string `json:"key"`
	// Value is what is written or appended, Old what a swap expects.
	Value int64 `json:"value,omitempty"`
	Old   int64 `json:"old,omitempty"`
}

// response is what the client was told.
type response struct {
	// Unknown: no answer came, or an error that does not say whether the
	// operation took effect.
	Unknown bool `json:"unknown,omitempty"`
	// Value is what a register's read found, absent when there was none.
	Value int64 `json:"value,omitempty"`
	// Swapped: the swap found what it expected.
	Swapped bool `json:"swapped,omitempty"`
	// List is what a list's read found, comma-separated.
	List string `json:"list,omitempty"`
}

// absent is the value of a register that was never written.
const absent = -1

// An operation of unknown outcome may take effect at any later time or never. It
// is given no end, so that it may stand after everything else, where it changes
// nothing that anybody saw.
const never = math.MaxInt64

// registers is a set of independent registers.
func registers() porcupine.Model {
	return porcupine.Model{
		Partition: byKey,
		Init:      func() any { return int64(absent) },
		Step: func(state, input, output any) (bool, any) {
			value, in, out := state.(int64), input.(request), output.(response)
			switch in.Kind {
			case opWrite:
				return true, in.Value
			case opSwap:
				// A row that is not there is not updated.
				swapped := value == in.Old && value != absent
				if !out.Unknown && swapped != out.Swapped {
					return false, value
				}
				if swapped {
					value = in.Value
				}
				return true, value
			default:
				return out.Value == value, value
			}
		},
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return strconv.FormatInt(state.(int64), 10) },
	}
}

// lists is a set of independent lists that only grow.
func lists() porcupine.Model {
	return porcupine.Model{
		Partition: byKey,
		Init:      func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			list, in, out := state.(string), input.(request), output.(response)
			if in.Kind == opAppend {
				if list != "" {
					list += ","
				}
				return true, list + strconv.FormatInt(in.Value, 10)
			}
			return out.List == list, list
		},
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return state.(string) },
	}
}

func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	parts := map[string][]porcupine.Operation{}
	for _, op := range history {
		key := op.Input.(request).Key
		parts[key] = append(parts[key], op)
	}
	var all [][]porcupine.Operation
	for _, part := range parts {
		all = append(all, part)
	}
	slices.SortFunc(all, func(a, b []porcupine.Operation) int { return cmp.Compare(a[0].Call, b[0].Call) })
	return all
}

func describe(input, output any) string {
	in, out := input.(request), output.(response)
	var what string
	switch in.Kind {
	case opRead:
		if out.List != "" {
			return fmt.Sprintf("read %s: %s", in.Key, out.List)
		}
		return fmt.Sprintf("read %s: %d", in.Key, out.Value)
	case opSwap:
		what = fmt.Sprintf("swap %s %d for %d: %v", in.Key, in.Old, in.Value, out.Swapped)
	default:
		what = fmt.Sprintf("%s %s %d", in.Kind, in.Key, in.Value)
	}
	if out.Unknown {
		what += " (outcome unknown)"
	}
	return what
}

// Verdict is what a checker says of a history.
type Verdict string

// The verdicts. A checker that ran out of time has found nothing out.
const (
	Linearizable Verdict = "ok"
	Illegal      Verdict = "illegal"
	Undecided    Verdict = "unknown"
	NotJudged    Verdict = "not judged"
)

// judge checks a history within a limit of time.
func judge(model porcupine.Model, history []porcupine.Operation, limit time.Duration) (Verdict, porcupine.LinearizationInfo) {
	result, info := porcupine.CheckOperationsVerbose(model, history, limit)
	switch result {
	case porcupine.Ok:
		return Linearizable, info
	case porcupine.Illegal:
		return Illegal, info
	default:
		return Undecided, info
	}
}
