package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// RepeatedKey is the path of a key that an object of JSON has twice, at any depth;
// empty: none. The decoder takes the last of them without a word.
func RepeatedKey(value []byte) string {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	path, _ := repeatedKey(decoder, "")
	return path
}

func repeatedKey(decoder *json.Decoder, path string) (string, error) {
	token, err := decoder.Token()
	if err != nil {
		return "", err //nolint:wrapcheck // what is no JSON is told by who decodes it
	}
	delimiter, ok := token.(json.Delim)
	if !ok {
		return "", nil
	}
	seen := map[string]bool{}
	for i := 0; decoder.More(); i++ {
		inner := fmt.Sprintf("%s[%d]", path, i)
		if delimiter == '{' {
			key, err := decoder.Token()
			if err != nil {
				return "", err //nolint:wrapcheck // as above
			}
			name, _ := key.(string)
			if inner = name; path != "" {
				inner = path + "." + name
			}
			if seen[name] {
				return inner, nil
			}
			seen[name] = true
		}
		if found, err := repeatedKey(decoder, inner); found != "" || err != nil {
			return found, err
		}
	}
	_, err = decoder.Token() // its end
	return "", err           //nolint:wrapcheck // as above
}
