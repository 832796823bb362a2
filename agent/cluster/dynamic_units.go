package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Errors of the unit parsers. They name the rule; who calls adds the setting.
var (
	errSeconds = errors.New("must be a whole number of seconds, or one with a unit (us, ms, s, min, h, d)")
	errBytes   = errors.New("must be a whole number of bytes, or one with a unit (B, kB, MB, GB, TB)")
	errInteger = errors.New("must be a whole number")
	errBoolean = errors.New("must be true or false")
)

// ParseSeconds reads a time as Patroni and PostgreSQL write it: a number is in
// seconds, text may carry a unit ("10s", "1min"). Only whole seconds pass: a
// fraction would be lost on the way through Patroni's tools.
func ParseSeconds(value any) (time.Duration, error) {
	if n, err := ParseInteger(value); err == nil {
		if n > math.MaxInt32 || n < -math.MaxInt32 {
			return 0, fmt.Errorf("must be at most %d s", math.MaxInt32)
		}
		return time.Duration(n) * time.Second, nil
	}
	text, ok := value.(string)
	if !ok {
		return 0, errSeconds
	}
	n, unit, ok := splitUnit(text)
	if !ok {
		return 0, errSeconds
	}
	var size time.Duration
	switch unit {
	case "us":
		size = time.Microsecond
	case "ms":
		size = time.Millisecond
	case "s":
		size = time.Second
	case "min":
		size = time.Minute
	case "h":
		size = time.Hour
	case "d":
		size = 24 * time.Hour
	default:
		return 0, errSeconds
	}
	if n > math.MaxInt32*int64(time.Second)/int64(size) || n < -math.MaxInt32 {
		return 0, fmt.Errorf("must be at most %d s", math.MaxInt32)
	}
	if d := time.Duration(n) * size; d%time.Second == 0 {
		return d, nil
	}
	return 0, errSeconds
}

// ParseBytes reads a size as Patroni and PostgreSQL write it: a number is in
// bytes, text may carry a unit ("10MB"); units count in 1024s.
func ParseBytes(value any) (int64, error) {
	if n, err := ParseInteger(value); err == nil {
		return n, nil
	}
	text, ok := value.(string)
	if !ok {
		return 0, errBytes
	}
	n, unit, ok := splitUnit(text)
	if !ok {
		return 0, errBytes
	}
	var shift uint
	switch unit {
	case "B":
	case "kB":
		shift = 10
	case "MB":
		shift = 20
	case "GB":
		shift = 30
	case "TB":
		shift = 40
	default:
		return 0, errBytes
	}
	if n > math.MaxInt64>>shift || n < 0 {
		return 0, errBytes
	}
	return n << shift, nil
}

// ParseInteger takes a whole number in any of the types that YAML, JSON and
// environment variables give it.
func ParseInteger(value any) (int64, error) {
	switch n := value.(type) {
	case int:
		return int64(n), nil
	case int64:
		return n, nil
	case uint64:
		if n <= math.MaxInt64 {
			return int64(n), nil
		}
	case float64:
		if n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return int64(n), nil
		}
	case json.Number:
		if i, err := n.Int64(); err == nil {
			return i, nil
		}
		if f, err := n.Float64(); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f), nil
		}
	case string:
		if i, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64); err == nil {
			return i, nil
		}
	}
	return 0, errInteger
}

// ParseBoolean takes true and false, and the words that PostgreSQL and Patroni
// take for them.
func ParseBoolean(value any) (bool, error) {
	switch v := value.(type) {
	case bool:
		return v, nil
	case string:
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "on", "yes", "true", "1":
			return true, nil
		case "off", "no", "false", "0":
			return false, nil
		}
	case int, int64, json.Number, float64:
		switch n, err := ParseInteger(v); {
		case err != nil:
		case n == 1:
			return true, nil
		case n == 0:
			return false, nil
		}
	}
	return false, errBoolean
}

// splitUnit takes "10 min" apart into a number and its unit.
func splitUnit(text string) (n int64, unit string, ok bool) {
	text = strings.TrimSpace(text)
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '-' && r != '+' })
	if end < 1 {
		return 0, "", false
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	return n, strings.TrimSpace(text[end:]), err == nil
}
