package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

const (
	// keysOfShard is how many keys of one shard are read, and bytesOfShard how many bytes, values and
	// names: those of 64 members and a long history are fewer. Whoever may write one shard's keys may
	// write as many as there is room for in Consul.
	keysOfShard, bytesOfShard = 256, 2 << 20
	// bytesOfAll is how many bytes of all shards are kept, or of any other prefix.
	bytesOfAll = 128 << 20
	// keyBytes is what a key takes besides its value and its name.
	keyBytes = 64
	// leftOutFor is how long a shard with too many bytes is not read again, unless the number of its
	// keys changes.
	leftOutFor = 15 * time.Second
)

// How Consul is to answer a question.
const (
	stale      = "stale"      // any server, which may be behind
	consistent = "consistent" // its leader, which has made sure that it is
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
	// leftOut are the shards whose keys are too many to be read, by name.
	leftOut map[string]leftOut
	// known are the pairs by their keys, where somebody has put them together already.
	known map[string]*consulapi.KVPair
}

// leftOut is why a shard's keys are not read.
type leftOut struct {
	why error
	counted
	at time.Time
}

// errTooMuch says that there is more below a prefix than is read.
var errTooMuch = errors.New("there is more below it in Consul than is read: see who writes there")

var errNoConsulLeader = errors.New("no leader: most of Consul's servers must run and see each other (consul operator raft list-peers)")

// shardsAfter reads the keys of all shards, as listAfter does. One that has more than a shard needs is
// left out, and costs the others nothing: how many keys each has is asked first, and where one has too
// many, or too much in them, each is read by itself.
func (s *Site) shardsAfter(ctx context.Context, mode string, wait time.Duration, before answer) (answer, error) {
	prefix, began := s.Namespace+"/", time.Now()
	counted, now, err := s.countKeys(ctx, prefix, mode)
	if err != nil {
		return answer{}, err
	}
	crowded := false
	for _, c := range counted {
		crowded = crowded || c.keys > keysOfShard
	}
	if counting := time.Since(began); !crowded && len(before.leftOut) == 0 {
		now, err := s.listAfter(ctx, prefix, mode, wait, before, &budget{shards: prefix, ofShard: bytesOfShard, left: bytesOfAll})
		if now.took += counting; !errors.Is(err, errTooMuch) {
			return now, err
		}
	}
	now.leftOut = map[string]leftOut{}
	omit := func(scope, format string, args ...any) {
		why := fmt.Errorf("its keys in Consul are not read, %s: see who writes them", fmt.Sprintf(format, args...))
		now.leftOut[scope] = leftOut{why, counted[scope], time.Now()}
	}
	known, read, size, total := knownPairs(before.pairs), map[string]consulapi.KVPairs{}, map[string]int{}, 0
	for _, scope := range slices.Sorted(maps.Keys(counted)) {
		c := counted[scope]
		old, was := before.leftOut[scope]
		switch {
		case c.keys > keysOfShard:
			omit(scope, "%d of them, more than %d", c.keys, keysOfShard)
			continue
		case was && old.counted == c && time.Since(old.at) < leftOutFor:
			now.leftOut[scope] = old
			continue
		}
		one, err := s.listAfter(ctx, prefix+scope+"/", mode, 0, answer{known: known}, &budget{shards: prefix, ofShard: bytesOfShard, left: bytesOfShard})
		switch {
		case errors.Is(err, errTooMuch):
			omit(scope, "more than %d bytes", bytesOfShard)
			continue
		case err != nil:
			return answer{}, err
		}
		read[scope], size[scope] = one.pairs, sizeOf(one.pairs)
		for total += size[scope]; total > bytesOfAll; { // those of all the others are shown
			most := slices.MaxFunc(slices.Sorted(maps.Keys(size)), func(a, b string) int { return size[a] - size[b] })
			omit(most, "as those of all shards have more than %d bytes, and it has the most", bytesOfAll)
			total -= size[most]
			delete(size, most)
			delete(read, most)
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(read)) {
		now.pairs = append(now.pairs, read[scope]...)
	}
	now.took = time.Since(began)
	return now, nil
}

// counted is how many keys a shard has; isShard: they are one's.
type counted struct {
	keys    int
	isShard bool
}

// countKeys counts the keys of each shard below a prefix.
func (s *Site) countKeys(ctx context.Context, prefix, mode string) (shards map[string]counted, head answer, err error) {
	err = s.askConsul(ctx, prefix, url.Values{"keys": {""}, mode: {""}}, func(response *http.Response) error {
		shards = nil
		if head, err = headed(response.Header, 0); err != nil || response.StatusCode == http.StatusNotFound {
			return err
		}
		shards, err = countNames(response.Body, prefix)
		return err
	})
	return shards, head, err
}

// countNames reads a JSON list of the names of keys.
func countNames(body io.Reader, prefix string) (map[string]counted, error) {
	shards := map[string]counted{}
	err := readList(body, func(decoder *json.Decoder) error {
		var key string
		err := decoder.Decode(&key)
		scope, rest, below := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		if c := shards[scope]; below {
			shards[scope] = counted{c.keys + 1, c.isShard || shardKey(rest)}
		}
		return err
	})
	return shards, err
}

// listAfter reads all keys below a prefix once there is something newer than the answer before, or
// after wait. It is what consulapi's List does, but takes one key after the other, no more than may be
// spent, and keeps those that it has: of thousands most are as they were, and all at once take several times the room.
func (s *Site) listAfter(ctx context.Context, prefix, mode string, wait time.Duration, before answer, spend *budget) (now answer, err error) {
	query := url.Values{"recurse": {""}, mode: {""}, "wait": {wait.String()}, "index": {strconv.FormatUint(before.index, 10)}}
	full := *spend
	err = s.askConsul(ctx, prefix, query, func(response *http.Response) error {
		began := time.Now()
		*spend = full
		if now, err = headed(response.Header, before.index); err != nil {
			return err
		}
		switch {
		case response.StatusCode == http.StatusNotFound: // there is no key
		case before.index != 0 && now.index == before.index:
			now.pairs = before.pairs // it has waited in vain
		default:
			if before.known == nil {
				before.known = knownPairs(before.pairs)
			}
			if now.pairs, err = readPairs(response.Body, before.known, spend); err != nil {
				return err
			}
		}
		now.took = time.Since(began)
		return nil
	})
	return now, err
}

// askConsul asks for what is below a prefix, at one address after the other until read has read the
// answer, which is 200 or 404.
func (s *Site) askConsul(ctx context.Context, prefix string, query url.Values, read func(*http.Response) error) error {
	return s.attempt(ctx, func(ctx context.Context, i int) error {
		c := s.configs[i]
		if c.Datacenter != "" {
			query.Set("dc", c.Datacenter)
		}
		address := url.URL{Scheme: c.Scheme, Host: c.Address, Path: "/v1/kv/" + prefix, RawQuery: query.Encode()}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
		if err != nil {
			return fmt.Errorf("reading %s: %w", prefix, err)
		}
		response, err := c.HttpClient.Do(request)
		if err != nil {
			return fmt.Errorf("reading %s: %w", prefix, err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNotFound {
			const most = 1 << 10
			text, _ := io.ReadAll(io.LimitReader(response.Body, most)) // the status says enough
			return fmt.Errorf("reading %s: %w", prefix, consulapi.StatusError{Code: response.StatusCode, Body: string(text)})
		}
		if err := read(response); err != nil {
			return fmt.Errorf("reading %s: %w", prefix, err)
		}
		_, err = io.Copy(io.Discard, response.Body) // to its end, so that the connection is free
		return err
	})
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

// budget is what may be spent on reading a prefix, in bytes.
type budget struct {
	// shards is what the names of shards come after in keys; empty: they are no shards'.
	shards string
	// ofShard is for each shard, left what there is for all.
	ofShard, left int
	spent         map[string]int
}

// spend takes a key in, of which the caller wants to know something, or not.
func (b *budget) spend(p *consulapi.KVPair) (wanted bool, err error) {
	wanted = true
	size := len(p.Key) + len(p.Value) + keyBytes
	if b.shards != "" {
		scope, rest, _ := strings.Cut(strings.TrimPrefix(p.Key, b.shards), "/")
		wanted = cluster.ReadOfShard(rest) && rest != "history" // long, and of no interest here
		if b.spent == nil {
			b.spent = map[string]int{}
		}
		if b.spent[scope] += size; b.spent[scope] > b.ofShard {
			return false, errTooMuch
		}
	}
	if wanted {
		b.left -= size
	}
	if b.left < 0 {
		return false, errTooMuch
	}
	return wanted, nil
}

// sizeOf is what is spent on keys.
func sizeOf(pairs consulapi.KVPairs) (size int) {
	for _, p := range pairs {
		size += len(p.Key) + len(p.Value) + keyBytes
	}
	return size
}

func knownPairs(pairs consulapi.KVPairs) map[string]*consulapi.KVPair {
	known := make(map[string]*consulapi.KVPair, len(pairs))
	for _, p := range pairs {
		known[p.Key] = p
	}
	return known
}

// readPairs reads a JSON list of keys. Those that are as they are known are the same.
func readPairs(body io.Reader, known map[string]*consulapi.KVPair, spend *budget) (pairs consulapi.KVPairs, err error) {
	err = readList(body, func(decoder *json.Decoder) error {
		var p consulapi.KVPair
		if err := decoder.Decode(&p); err != nil {
			return err
		}
		wanted, err := spend.spend(&p)
		switch old := known[p.Key]; {
		case !wanted:
		case old != nil && same(old, &p):
			pairs = append(pairs, old)
		default:
			pairs = append(pairs, &p)
		}
		return err
	})
	return pairs, err
}

// readList reads a JSON list, one element after the other.
func readList(body io.Reader, element func(*json.Decoder) error) error {
	decoder := json.NewDecoder(body)
	if first, err := decoder.Token(); err != nil {
		return err
	} else if first != json.Delim('[') {
		return fmt.Errorf("it begins with %v, and is no list", first)
	}
	for decoder.More() {
		if err := element(decoder); err != nil {
			return err
		}
	}
	_, err := decoder.Token() // without its end it was cut off
	return err
}

// same reports whether a key is as it was. Its number alone does not tell: where Consul's data are made
// anew the numbers begin anew, too.
func same(a, b *consulapi.KVPair) bool {
	return a.ModifyIndex == b.ModifyIndex && a.Session == b.Session && bytes.Equal(a.Value, b.Value)
}
