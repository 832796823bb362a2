package settings

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"
)

// within are the secrets in a text that is no secret itself: a conninfo, a command,
// a URL.
func within(text string) (found []string) {
	for _, m := range secretText().FindAllStringSubmatch(text, -1) {
		found = append(found, strings.Trim(m[3], `'"`))
	}
	for word := range strings.FieldsSeq(text) {
		if u, err := url.Parse(word); err == nil && u.User != nil {
			if password, set := u.User.Password(); set && password != "" {
				found = append(found, password)
			}
		}
	}
	return found
}

// Secrets are the values of a configuration that must not be shown, wherever in
// it they stand: by the names of their settings.
func Secrets(config any) []string {
	var out []string
	collect(reflect.ValueOf(config), false, &out)
	return out
}

func collect(v reflect.Value, secret bool, out *[]string) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			collect(v.Elem(), secret, out)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				collect(v.Field(i), isSecret(tagName(v.Type().Field(i))), out)
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			collect(v.MapIndex(key), isSecret(fmt.Sprint(key.Interface())), out)
		}
	case reflect.Slice:
		for i := range v.Len() {
			collect(v.Index(i), secret, out)
		}
	case reflect.String:
		switch {
		case secret && v.Len() > 0:
			*out = append(*out, v.String())
		case !secret:
			*out = append(*out, within(v.String())...)
		}
	}
}
