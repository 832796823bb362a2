package settings

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// hidden stands in the place of a secret.
const hidden = "(hidden)"

// isSecret tells by a setting's name whether its value must not be shown.
func isSecret(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	if name == "authorization" || name == "pass" {
		return true
	}
	for _, end := range []string{"password", "passwd", "passphrase", "_pass", "token", "secret", "secret_key", "access_key", "api_key"} {
		if strings.HasSuffix(name, end) && name != "no_password" {
			return true
		}
	}
	return false
}

// holdsSecrets reports whether a tree has a secret anywhere.
func holdsSecrets(value any) bool {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if isSecret(key) && inner != nil && inner != "" || holdsSecrets(inner) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if holdsSecrets(inner) {
				return true
			}
		}
	}
	return false
}

// mayHoldSecrets reports whether a value of this type may have a secret within.
func mayHoldSecrets(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return mayHoldSecrets(t.Elem())
	case reflect.Map, reflect.Interface:
		return true // free-form: nobody knows
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); isSecret(tagName(f)) || mayHoldSecrets(f.Type) {
				return true
			}
		}
	}
	return false
}

func secretText() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(password|passwd|token|secret)(\s*[=:]\s*)('[^']*'|"[^"]*"|\S+)`)
}

// Redact hides what looks like a secret within a text: the user part of a URL
// and what follows password= and the like.
func Redact(text string) string {
	if strings.Contains(text, "://") {
		text = withoutUser(text)
	}
	return secretText().ReplaceAllString(text, "${1}${2}"+hidden)
}

// Dump shows a configuration as YAML, with its secrets hidden and without what
// is not set.
func Dump(config any) string {
	text, err := yaml.Marshal(dump(reflect.ValueOf(config)))
	if err != nil {
		return fmt.Sprintf("(a configuration that cannot be shown: %v)", err)
	}
	return string(text)
}

func dump(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return dump(v.Elem())
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			name := tagName(v.Type().Field(i))
			if v.Field(i).IsZero() {
				continue
			}
			if isRemain(v.Type().Field(i)) {
				for _, key := range v.Field(i).MapKeys() {
					out[key.String()] = dump(v.Field(i).MapIndex(key))
				}
				continue
			}
			if name == "" || name == "-" {
				continue
			}
			out[name] = dumpField(name, v.Field(i))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, key := range v.MapKeys() {
			out[fmt.Sprint(key.Interface())] = dumpField(fmt.Sprint(key.Interface()), v.MapIndex(key))
		}
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = dump(v.Index(i))
		}
		return out
	case reflect.String:
		return Redact(v.String())
	case reflect.Invalid:
		return nil
	}
	return v.Interface()
}

func dumpField(name string, v reflect.Value) any {
	if isSecret(name) && !v.IsZero() {
		return hidden
	}
	return dump(v)
}
