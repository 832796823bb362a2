package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/hashicorp/consul/api"
)

type eachKey struct{}

// EachPair has the pairs of a list, asked for with this context, handed to take one by one while the answer comes;
// the list that is returned is empty. The client would have a long answer as a whole in its memory, in a buffer of up
// to twice that, before it begins to read it. A pair is take's own. What was handed on counts only when
// the request has no error.
func EachPair(ctx context.Context, take func(api.KVPair)) context.Context {
	return context.WithValue(ctx, eachKey{}, take)
}

// pairs is a transport that knows of EachPair.
type pairs struct{ http.RoundTripper }

func (p pairs) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := p.RoundTripper.RoundTrip(r)
	if take, each := r.Context().Value(eachKey{}).(func(api.KVPair)); each && err == nil && answer.StatusCode == http.StatusOK {
		answer.Body = &pairsBody{ReadCloser: answer.Body, take: take}
	}
	return answer, err
}

// pairsBody is an empty list once that it has handed on what is in another one.
type pairsBody struct {
	io.ReadCloser
	take func(api.KVPair)
	left io.Reader
}

func (b *pairsBody) Read(p []byte) (int, error) {
	if b.left == nil {
		if err := eachPair(b.ReadCloser, b.take); err != nil {
			return 0, fmt.Errorf("reading a list: %w", err)
		}
		b.left = strings.NewReader("[]")
	}
	return b.left.Read(p)
}

func eachPair(list io.Reader, take func(api.KVPair)) error {
	decoder := json.NewDecoder(list)
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('[') {
		return orNoList(err)
	}
	for decoder.More() {
		var pair api.KVPair
		if err := decoder.Decode(&pair); err != nil {
			return orNoList(err)
		}
		take(pair)
	}
	_, err := decoder.Token()
	if err != nil {
		return orNoList(err)
	}
	return nil
}

// orNoList is an error; nil: that it is no list.
func orNoList(err error) error {
	if err == nil {
		return errors.New("the answer is none")
	}
	if errors.Is(err, io.EOF) { // which the client would take for the end of the answer
		return io.ErrUnexpectedEOF
	}
	return err
}
