package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"

	"github.com/lictor-ha/lictor/agent/printable"
)

// MergePatch lays patch over base as Patroni does: maps are merged key by key,
// null removes a key, anything else takes the place of what was there. Neither
// argument is changed, and the result shares no map with them.
func MergePatch(base, patch map[string]any) map[string]any {
	out := make(map[string]any, len(base)+len(patch))
	for key, value := range base {
		if inner, ok := value.(map[string]any); ok {
			value = MergePatch(inner, nil)
		}
		out[key] = value
	}
	for key, value := range patch {
		if value == nil {
			delete(out, key)
			continue
		}
		if inner, ok := value.(map[string]any); ok {
			below, _ := out[key].(map[string]any)
			value = MergePatch(below, inner)
		}
		out[key] = value
	}
	return out
}

// PatchBetween is the patch that MergePatch turns before into after with. Values
// that are null count as absent.
func PatchBetween(before, after map[string]any) map[string]any {
	patch := map[string]any{}
	for key, was := range before {
		if is, kept := after[key]; was != nil && (!kept || is == nil) {
			patch[key] = nil
		}
	}
	for key, is := range after {
		was, had := before[key].(map[string]any)
		inner, isMap := is.(map[string]any)
		switch {
		case is == nil || reflect.DeepEqual(before[key], is):
		case had && isMap:
			patch[key] = PatchBetween(was, inner)
		default:
			patch[key] = is
		}
	}
	return patch
}

// CanonicalJSON writes a dynamic configuration as it goes into Consul: compact,
// keys sorted, whole numbers as whole numbers, and nothing escaped that need
// not be, so that patronictl shows what was meant.
func CanonicalJSON(config map[string]any) ([]byte, error) {
	if config == nil {
		return []byte("{}"), nil
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(config); err != nil {
		return nil, fmt.Errorf("dynamic configuration cannot be written as JSON: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// DecodeObject reads one JSON object, such as the value of the key config. Numbers stay as they are written
// (json.Number): 1048576 must not come back as 1.048576e+06.
func DecodeObject(value []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	var raw map[string]any
	if err := decoder.Decode(&raw); err != nil {
		return nil, fmt.Errorf("is not a JSON object: %w", printable.Error(err))
	}
	if raw == nil {
		return nil, fmt.Errorf("is null, must be a JSON object")
	}
	if _, err := decoder.Token(); err != io.EOF { //nolint:errorlint // Token returns io.EOF itself
		return nil, fmt.Errorf("has something after the JSON object")
	}
	return raw, nil
}
