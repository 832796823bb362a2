package pgauth

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

const (
	dear  = "R\x00\x00\x00\x21\x00\x00\x00\x0br=abc,s=c2FsdA==,i=100001"
	let   = "R\x00\x00\x00\x08\x00\x00\x00\x00"
	query = "D\x7f\x00\x00\x00"
)

// Whatever a server says, in whatever pieces, is handed on until it wants too much.
func FuzzFrontend(f *testing.F) {
	f.Add([]byte(dear), 3)
	f.Add([]byte("R\x00\x00\x00\x07,i="), 1)
	f.Add([]byte("Z\x00\x00\x00\x05I"+dear), 100)
	f.Add([]byte("R\x00\x00\x00\x00"), 5)
	f.Add([]byte(let+dear), 7)
	f.Fuzz(func(t *testing.T, said []byte, piece int) {
		heard, _ := hear(said, max(1, piece%64))
		if !bytes.HasPrefix(said, heard) {
			t.Errorf("%q became %q", said, heard)
		}
		if string(said) == dear && len(heard) == len(said) {
			t.Errorf("%q was handed on", heard)
		}
	})
}

func hear(said []byte, piece int) (heard []byte, err error) {
	r := &hashingReader{from: bytes.NewReader(said)}
	for b := make([]byte, piece); ; {
		n, err := r.Read(b)
		heard = append(heard, b[:n]...)
		if err != nil {
			return heard, err
		}
	}
}

func TestFrontend(t *testing.T) {
	for said, want := range map[string]error{
		dear: ErrDear,
		"R\x00\x00\x00\x21\x00\x00\x00\x0br=abc,s=c2FsdA==,i=100000": io.EOF,
		let + dear:                     io.EOF, // a row, say
		query:                          errTooLong,
		let + query:                    io.EOF,
		"S\x00\x00\x00\x05\x00" + dear: ErrDear,
	} {
		for _, piece := range []int{1, 7, 4096} {
			heard, err := hear([]byte(said), piece)
			if !errors.Is(err, want) || errors.Is(want, io.EOF) && string(heard) != said {
				t.Errorf("%q in pieces of %d: %q, %v, want %v", said, piece, heard, err, want)
			}
		}
	}
}
