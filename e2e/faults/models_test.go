package faults

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

func op(client int, from, to int64, in request, out response) porcupine.Operation {
	in.Key = "k"
	return porcupine.Operation{ClientId: client, Call: from, Return: to, Input: in, Output: out}
}

// TestModels: the checker sees a lost write, a stale read and a lost append, and
// lets an operation of unknown outcome take effect late or never.
func TestModels(t *testing.T) {
	write := func(v int64) request { return request{Kind: opWrite, Value: v} }
	add := func(v int64) request { return request{Kind: opAppend, Value: v} }
	read, ok, unknown := request{Kind: opRead}, response{}, response{Unknown: true}
	for _, test := range []struct {
		name    string
		model   porcupine.Model
		history []porcupine.Operation
		want    Verdict
	}{
		{"read what was written", registers(), []porcupine.Operation{
			op(1, 0, 1, read, response{Value: absent}), op(1, 2, 3, write(7), ok), op(2, 4, 5, read, response{Value: 7}),
		}, Linearizable},
		{"a lost write", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, 3, write(8), ok), op(2, 4, 5, read, response{Value: 7}),
		}, Illegal},
		{"unknown, never took effect", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, never, write(8), unknown), op(2, 4, 5, read, response{Value: 7}),
		}, Linearizable},
		{"unknown, took effect late", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, never, write(8), unknown), op(2, 4, 5, read, response{Value: 7}), op(2, 6, 7, read, response{Value: 8}),
		}, Linearizable},
		{"unknown, seen and then lost", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, never, write(8), unknown), op(2, 4, 5, read, response{Value: 8}), op(2, 6, 7, read, response{Value: 7}),
		}, Illegal},
		{"swaps", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, 3, request{Kind: opSwap, Old: 7, Value: 8}, response{Swapped: true}),
			op(1, 4, 5, request{Kind: opSwap, Old: 7, Value: 9}, response{}), op(1, 6, 7, read, response{Value: 8}),
		}, Linearizable},
		{"swap of what is not there", registers(), []porcupine.Operation{
			op(1, 0, 1, request{Kind: opSwap, Old: absent, Value: 8}, response{}), op(1, 2, 3, read, response{Value: absent}),
		}, Linearizable},
		{"two swaps of one value", registers(), []porcupine.Operation{
			op(1, 0, 1, write(7), ok), op(1, 2, 3, request{Kind: opSwap, Old: 7, Value: 8}, response{Swapped: true}),
			op(2, 4, 5, request{Kind: opSwap, Old: 7, Value: 9}, response{Swapped: true}),
		}, Illegal},
		{"appends", lists(), []porcupine.Operation{
			op(1, 0, 1, read, response{}), op(1, 2, 5, add(1), ok), op(2, 3, 4, add(2), ok), op(1, 6, 7, read, response{List: "2,1"}),
		}, Linearizable},
		{"a lost append", lists(), []porcupine.Operation{
			op(1, 0, 1, add(1), ok), op(1, 2, 3, add(2), ok), op(1, 6, 7, read, response{List: "1"}),
		}, Illegal},
		{"an append twice", lists(), []porcupine.Operation{
			op(1, 0, 1, add(1), ok), op(1, 6, 7, read, response{List: "1,1"}),
		}, Illegal},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, _ := judge(test.model, test.history, 10*time.Second); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
