package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// answer is what Consul has said of a prefix.
type answer struct {
	pairs consulapi.KVPairs
	index uint64
	at    time.Time
	took  time.Duration // to read it, once Consul had begun to answer
	err   error
	// filtered: Consul has left out what the token may not read.
	filtered bool
}

var errNoConsulLeader = errors.New("no leader: most of Consul's servers must run and see each other (consul operator raft list-peers)")

// listAfter reads all keys below a prefix once there is something newer than the answer before, or
// after wait. It is what consulapi's List does, but takes one key after the other, and keeps those
// that it has: of thousands most are as they were, and all at once take several times the room.
func listAfter(ctx context.Context, c *consulapi.Config, prefix string, wait time.Duration, before answer) (answer, error) {
	query := url.Values{"recurse": {""}, "stale": {""}, "wait": {wait.String()}, "index": {strconv.FormatUint(before.index, 10)}}
	if c.Datacenter != "" {
		query.Set("dc", c.Datacenter)
	}
	address := url.URL{Scheme: c.Scheme, Host: c.Address, Path: "/v1/kv/" + prefix, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return answer{}, fmt.Errorf("reading %s: %w", prefix, err)
	}
	response, err := c.HttpClient.Do(request)
	if err != nil {
		return answer{}, fmt.Errorf("reading %s: %w", prefix, err)
	}
	defer response.Body.Close()
	began := time.Now()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNotFound {
		const most = 1 << 10
		text, _ := io.ReadAll(io.LimitReader(response.Body, most)) // the status says enough
		return answer{}, fmt.Errorf("reading %s: %w", prefix, consulapi.StatusError{Code: response.StatusCode, Body: string(text)})
	}
	now, err := headed(response.Header, before.index)
	if err != nil {
		return answer{}, fmt.Errorf("reading %s: %w", prefix, err)
	}
	switch {
	case response.StatusCode == http.StatusNotFound: // there is no key
	case now.index == before.index:
		now.pairs = before.pairs // it has waited in vain
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return answer{}, fmt.Errorf("reading %s: %w", prefix, err)
		}
	default:
		if now.pairs, err = readPairs(response.Body, before.pairs); err != nil {
			return answer{}, fmt.Errorf("reading %s: %w", prefix, err)
		}
	}
	now.took = time.Since(began)
	return now, nil
}

// headed is an answer by its header, without its keys: of which moment it is, and what to wait for.
// An index that goes back, as when Consul was restored or another server is behind, is none to
// wait for.
func headed(h http.Header, before uint64) (answer, error) {
	index, err := strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return answer{}, fmt.Errorf("the header X-Consul-Index: %w", err)
	}
	if h.Get("X-Consul-KnownLeader") == "false" {
		return answer{}, errNoConsulLeader
	}
	if index < before {
		index = 0
	}
	behind, err := strconv.ParseInt(h.Get("X-Consul-LastContact"), 10, 64)
	if err != nil {
		behind = 0 // the leader itself has answered
	}
	return answer{
		index: index, at: time.Now().Add(-time.Duration(behind) * time.Millisecond), filtered: h.Get("X-Consul-Results-Filtered-By-ACLs") == "true",
	}, nil
}

// readPairs reads a JSON list of keys. Those that are as they were before are the same.
func readPairs(body io.Reader, before consulapi.KVPairs) (consulapi.KVPairs, error) {
	known := make(map[string]*consulapi.KVPair, len(before))
	for _, p := range before {
		known[p.Key] = p
	}
	decoder := json.NewDecoder(body)
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	pairs := make(consulapi.KVPairs, 0, len(before))
	for decoder.More() {
		var p consulapi.KVPair
		if err := decoder.Decode(&p); err != nil {
			return nil, err
		}
		if old := known[p.Key]; old != nil && same(old, &p) {
			pairs = append(pairs, old)
		} else if !strings.HasSuffix(p.Key, "/history") { // long, and of no interest here
			pairs = append(pairs, &p)
		}
	}
	_, err := decoder.Token() // without its end it was cut off
	return pairs, err
}

// same reports whether a key is as it was. Its number alone does not tell: where Consul's data are made
// anew the numbers begin anew, too.
func same(a, b *consulapi.KVPair) bool {
	return a.ModifyIndex == b.ModifyIndex && a.Session == b.Session && bytes.Equal(a.Value, b.Value)
}
