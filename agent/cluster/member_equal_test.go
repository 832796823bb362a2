package cluster_test

import (
	"reflect"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// TestMemberEqualLooksAtEveryField: a field that Equal forgets would not be written to
// Consul when it changes.
func TestMemberEqualLooksAtEveryField(t *testing.T) {
	if !(cluster.Member{}).Equal(cluster.Member{Tags: map[string]any{}}) {
		t.Error("no tags are not equal to none")
	}
	change := func(v reflect.Value) {
		switch v.Kind() { //nolint:exhaustive // the others fail below
		case reflect.String:
			v.SetString("x")
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int64:
			v.SetInt(7)
		case reflect.Uint64:
			v.SetUint(7)
		case reflect.Map:
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf("x"), reflect.New(v.Type().Elem()).Elem())
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		default:
			t.Fatalf("what is a %s?", v.Type())
		}
	}
	for i := range reflect.TypeFor[cluster.Member]().NumField() {
		var m cluster.Member
		change(reflect.ValueOf(&m).Elem().Field(i))
		name := reflect.TypeFor[cluster.Member]().Field(i).Name
		if m.Equal(cluster.Member{}) || (cluster.Member{}).Equal(m) {
			t.Errorf("a change of %s is not seen", name)
		}
		if !m.Equal(m) {
			t.Errorf("with %s it is not equal to itself", name)
		}
	}
	for i := range reflect.TypeFor[cluster.MemberLictor]().NumField() {
		l := &cluster.MemberLictor{}
		change(reflect.ValueOf(l).Elem().Field(i))
		a, b := cluster.Member{Lictor: l}, cluster.Member{Lictor: &cluster.MemberLictor{}}
		if a.Equal(b) || b.Equal(a) {
			t.Errorf("a change of lictor.%s is not seen", reflect.TypeFor[cluster.MemberLictor]().Field(i).Name)
		}
	}
	yes, no := true, false
	if (cluster.Member{CheckpointAfterPromote: &yes}).Equal(cluster.Member{CheckpointAfterPromote: &no}) {
		t.Error("a change of checkpoint_after_promote is not seen")
	}
}
