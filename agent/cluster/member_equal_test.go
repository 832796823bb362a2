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

// What a member says of a pause counts if it says so by the configuration that is asked about.
func TestMemberSaysPaused(t *testing.T) {
	by := func(config uint64) *cluster.MemberLictor { return &cluster.MemberLictor{Config: config} }
	for name, tt := range map[string]struct {
		member   cluster.Member
		on, want bool
	}{
		"paused":                        {cluster.Member{Pause: true, Lictor: by(7)}, true, true},
		"paused, by a later one":        {cluster.Member{Pause: true, Lictor: by(8)}, true, true},
		"paused, by the pause before":   {cluster.Member{Pause: true, Lictor: by(6)}, true, false},
		"not paused":                    {cluster.Member{Lictor: by(7)}, true, false},
		"resumed":                       {cluster.Member{Lictor: by(7)}, false, true},
		"resumed, by what was before":   {cluster.Member{Lictor: by(6)}, false, false},
		"still paused":                  {cluster.Member{Pause: true, Lictor: by(7)}, false, false},
		"Patroni's":                     {cluster.Member{Pause: true}, true, true},
		"of a version that tells not":   {cluster.Member{Pause: true, Lictor: by(0)}, true, true},
		"of such a version, not paused": {cluster.Member{Lictor: by(0)}, true, false},
	} {
		if got := tt.member.SaysPaused(tt.on, 7); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
