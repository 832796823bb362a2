package pgauth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// mostIterations is how often a password is hashed for a server at the most: PostgreSQL's default
	// (scram_iterations) is 4,096, and the client takes ten million, which are seconds of a processor that nothing
	// cuts short.
	mostIterations = 100_000
	// mostBefore bounds a message that comes before the server has let us in, in bytes.
	mostBefore = 64 << 10
)

var (
	// ErrDear says that a server wants the password to be hashed too often.
	ErrDear    = errors.New("it wants the password to be hashed too often")
	errTooLong = errors.New("it says too much before it lets anybody in")
)

// hashingReader hands on what a server says, until it wants a password to be hashed too often.
type hashingReader struct {
	from io.Reader
	// seen is what was read of the next message.
	seen []byte
	// in: the server has let us in, and what it says since is not looked at.
	in bool
}

// Frontend is for pgconn.Config.BuildFrontend: whatever has a server's address may say what it likes, and
// costs no seconds of a processor by it.
func Frontend(r io.Reader, w io.Writer) *pgproto3.Frontend {
	return pgproto3.NewFrontend(&hashingReader{from: r}, w)
}

func (r *hashingReader) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	if r.in {
		return n, err
	}
	r.seen = append(r.seen, b[:n]...)
	for len(r.seen) >= 5 && !r.in {
		end := 1 + int(binary.BigEndian.Uint32(r.seen[1:]))
		if end > mostBefore {
			return 0, errTooLong
		}
		if end > len(r.seen) || end < 5 {
			break
		}
		if r.seen[0] == 'R' && end >= 9 {
			if err := r.authentication(r.seen[5:end]); err != nil {
				return 0, err
			}
		}
		r.seen = r.seen[end:]
	}
	if r.in {
		r.seen = nil
	}
	return n, err
}

// authentication looks at what the server says of it.
func (r *hashingReader) authentication(body []byte) error {
	switch binary.BigEndian.Uint32(body) {
	case pgproto3.AuthTypeOk:
		r.in = true
	case pgproto3.AuthTypeSASLContinue:
		if _, count, counts := bytes.Cut(body, []byte(",i=")); counts {
			if i, err := strconv.Atoi(string(count)); err != nil || i > mostIterations {
				return ErrDear
			}
		}
	}
	return nil
}
