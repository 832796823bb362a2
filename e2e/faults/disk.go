package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// diskFaults make the file system of the primary's data directory unfit to write.
func diskFaults() []Fault {
	lost := Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true}
	return []Fault{
		{Name: "disk-full", Available: hasVolumes, Inject: fillDisk, Hold: failover, Expect: lost},
		{Name: "disk-hang", Available: hasVolumes, Inject: hangDisk, Hold: failover, Expect: lost},
	}
}

func hasVolumes(s *Site) error {
	if s.Lab.Options.VolumeMB == 0 {
		return errors.New("data directories have no volumes of their own in this lab; making them needs root, e2fsprogs and loop devices")
	}
	return nil
}

func fillDisk(_ context.Context, s *Stage) error {
	volume := s.Primary.Volume
	s.Target("filling the data volume of", s.Primary.Name)
	s.Undo(func(context.Context) error { return volume.Drain() })
	return volume.Fill()
}

func hangDisk(_ context.Context, s *Stage) error {
	volume := s.Primary.Volume
	s.Target("letting all writes to the data volume hang on", s.Primary.Name)
	s.Undo(func(context.Context) error { return volume.Thaw() })
	return volume.Freeze()
}

// saturate gives the primary's host one processor and occupies it with two busy
// loops of high priority. The machine's other processors go on, since they are
// the other hosts'.
func saturate(ctx context.Context, s *Stage) error {
	processor := s.Rand.IntN(runtime.NumCPU())
	s.Target(fmt.Sprintf("saturating, on processor %d, ", processor), s.Primary.Name)
	one := unix.CPUSet{}
	one.Set(processor)
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("own processors: %w", err)
	}
	s.Undo(func(context.Context) error { return setAffinity(s.Primary, &all) })
	if err := setAffinity(s.Primary, &one); err != nil {
		return err
	}
	for i := range 2 {
		busy, err := s.Primary.Run(lab.Spec{Name: "busy" + strconv.Itoa(i), Path: "/bin/sh", Args: []string{"-c", "while :; do :; done"}})
		if err != nil {
			return err
		}
		s.Undo(busy.Kill)
		if err := unix.SchedSetaffinity(busy.PID(), &one); err != nil {
			return fmt.Errorf("busy loop: %w", err)
		}
		const highPriority = -10
		if err := unix.Setpriority(unix.PRIO_PROCESS, busy.PID(), highPriority); err != nil {
			return fmt.Errorf("busy loop: %w", err)
		}
	}
	return ctx.Err()
}

// setAffinity says on which processors a host's processes run, thread by thread.
// What is forked later inherits it.
func setAffinity(m *lab.Member, set *unix.CPUSet) error {
	found, err := m.Find(func(lab.ProcessInfo) bool { return true })
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range found {
		threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.PID), "task"))
		if err != nil {
			continue // it ended meanwhile
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if err := unix.SchedSetaffinity(id, set); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("processor of thread %d: %w", id, err))
			}
		}
	}
	return errors.Join(errs...)
}

// undisturbed is how long the clients work before each fault.
const undisturbed = 2 * time.Second
