package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// ErrTooLong says that an answer of Consul's has more bytes than Limited allows.
var ErrTooLong = errors.New("the answer of Consul is too long")

type limitKey struct{}

// Limited has answers to requests with this context refused that have more than so many bytes. Whoever may write
// the keys of one shard may write as many, of half a megabyte each, as there is room in Consul: what is read of
// them must cost that shard alone.
func Limited(ctx context.Context, bytes int64) context.Context {
	return context.WithValue(ctx, limitKey{}, bytes)
}

// limits is a transport that knows of Limited.
type limits struct{ http.RoundTripper }

func (l limits) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.RoundTripper.RoundTrip(r)
	if most, limited := r.Context().Value(limitKey{}).(int64); limited && err == nil {
		answer.Body = &limitedBody{answer.Body, most, most}
	}
	return answer, err
}

// limitedBody fails when it has more than so many bytes.
type limitedBody struct {
	io.ReadCloser
	left, most int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		var one [1]byte // it may end here
		if n, err := b.ReadCloser.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, fmt.Errorf("%w: it has more than %d bytes", ErrTooLong, b.most)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
