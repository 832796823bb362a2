package fence

import (
	"errors"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func TestDeadline(t *testing.T) {
	s := func(n int) cluster.Instant { return cluster.Instant(time.Duration(n) * time.Second) }
	var d Deadline
	if d.Due(s(1000)) {
		t.Error("due without a deadline")
	}
	if err := d.Arm(s(1), s(8), false); err != nil || d.Due(s(7)) || !d.Due(s(8)) {
		t.Errorf("armed: %v, %+v", err, d)
	}
	if err := d.Arm(s(3), s(6), false); err != nil || !d.Due(s(6)) {
		t.Errorf("moved nearer: %v, %+v", err, d)
	}
	if err := d.Arm(s(6), s(20), false); !errors.Is(err, ErrDeadlinePassed) || !d.Due(s(6)) {
		t.Errorf("moved after it has passed: %v, %+v", err, d)
	}
	d.Fire()
	if err := d.Arm(s(7), s(20), false); !errors.Is(err, ErrDeadlinePassed) || !d.Fired {
		t.Errorf("moved after it has fired: %v, %+v", err, d)
	}
	if err := d.Arm(s(7), s(20), true); err != nil || d.Fired || !d.Due(s(20)) {
		t.Errorf("new lease: %v, %+v", err, d)
	}
	if err := d.Arm(s(8), 0, true); err == nil {
		t.Error("armed without a deadline")
	}
	d.Disarm()
	if d.Due(s(100)) {
		t.Error("due after it was disarmed")
	}
}
