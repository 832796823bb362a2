package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/e2e/vm/event"
)

const (
	// powerFiles is how many files are installed again and again.
	powerFiles = 48
	// Of so many installations one is followed by another program's fsync, which has the
	// journal committed, and by the file's own.
	othersSync = 3
	ownSync    = 6
)

func powerPath(i int) string {
	return filepath.Join(root, "power", fmt.Sprint(i), "pgbouncer.ini")
}

// powerText is generation n of file i.
func powerText(i, n int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "; file %d %d\n[databases]\n", i, n)
	for shard := range 20 * (i + 1) {
		fmt.Fprintf(&b, "shard%d = host=10.%d.%d.1 port=%d dbname=shard%d\n", shard, i, n%250, 5000+n%1000, shard)
	}
	fmt.Fprintf(&b, "; end of %d %d\n", i, n)
	return b.Bytes()
}

// playPower installs files until the power is cut. Before each scenario of it
// they are all there, and last.
func playPower(scenario string) error {
	for i := range powerFiles {
		if err := os.MkdirAll(filepath.Dir(powerPath(i)), 0o755); err != nil {
			return err
		}
		if _, err := install.File(powerPath(i), powerText(i, 0)); err != nil {
			return err
		}
	}
	tell(event.Acted, event.Event{})
	other, err := os.Create(filepath.Join(root, "power", "other"))
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		for _, i := range rand.Perm(powerFiles) {
			file := install.NewConfig(powerPath(i))
			if scenario == "power-careless" {
				err = putCarelessly(powerPath(i), powerText(i, n))
			} else {
				_, err = file.Put(powerText(i, n))
			}
			if err != nil {
				return err
			}
			if rand.N(othersSync) == 0 {
				if _, err := other.WriteAt([]byte{byte(n)}, rand.Int64N(1<<20)); err != nil {
					return err
				}
				if err := other.Sync(); err != nil {
					return err
				}
			}
			if scenario == "power-cut" && rand.N(ownSync) == 0 {
				if err := file.Keep(); err != nil {
					return err
				}
				tell(event.Lasts, event.Event{File: i, Generation: n})
			}
		}
	}
}

// putCarelessly is what a power cut breaks: a new name for what is not written yet.
func putCarelessly(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// powerReturns looks what a power cut has left.
func powerReturns() error {
	for i := range powerFiles {
		text, err := os.ReadFile(powerPath(i))
		if err != nil {
			return err
		}
		var of, n int
		_, err = fmt.Fscanf(bytes.NewReader(text), "; file %d %d\n", &of, &n)
		e := event.Event{File: i, Generation: n}
		if err != nil || of != i || !bytes.Equal(text, powerText(i, n)) {
			e.Generation = -1
			said, err := json.Marshal(string(text[:min(len(text), 40)]))
			if err != nil {
				return err
			}
			e.Text = fmt.Sprintf("%d bytes, first %s", len(text), said)
		}
		tell(event.Found, e)
	}
	tell(event.Survived, event.Event{})
	return nil
}
