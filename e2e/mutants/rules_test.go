package mutants

import "testing"

// Every rule that the simulator can switch off has a test that notices, or a reason beside it.
func TestEveryRuleIsNoticed(t *testing.T) {
	rules, err := Rules("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) < 40 {
		t.Errorf("only %d rules", len(rules))
	}
	for _, r := range rules {
		switch {
		case len(r.Tests) == 0 && r.Reason == "":
			t.Errorf("nothing notices that %s is left out, and no reason stands beside it", r.Name)
		case len(r.Tests) > 0 && r.Reason != "":
			t.Errorf("%s is noticed by %v: it needs no reason", r.Name, r.Tests)
		case r.What == "":
			t.Errorf("%s: what is left out?", r.Name)
		}
	}
}
