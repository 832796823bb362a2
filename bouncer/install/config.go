package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
)

// Config is PgBouncer's own file. A failover waits for Put, nothing waits for Keep: each may be
// called while the other runs. Put is called by one goroutine.
type Config struct {
	path string
	// last is what Put has put into place; of those alone who call that.
	last []byte
	// lasts: Keep has succeeded since PutLasting has put something into place; of that one's caller alone.
	lasts bool
	// good is the last good one; of KeepGood's caller alone.
	good *Lasting
	// looked: whether the file that was there is somebody else's; of KeepBefore's caller alone.
	looked bool
	// mu: the spare file is made, or takes the place of the file.
	mu sync.Mutex
}

// NewConfig is the file at path, with a spare one and the last good one beside it.
func NewConfig(path string) *Config {
	return &Config{path: path, good: NewLasting(lastGood(path))}
}

// Put is File, but for this: until Keep has returned, or the system has written everything
// out of its own accord, a power cut may bring the old file back. It never leaves
// a part of one. On a full disk the file that Keep has made takes its place, so that no
// shard stays at its old primary for it.
func (c *Config) Put(text []byte) (written bool, err error) {
	place := placeOf(c.path)
	// What is another text than the one before need not be compared with what is there.
	isText := func(other []byte) bool { return bytes.Equal(bytes.TrimRight(other, "\n"), bytes.TrimRight(text, "\n")) }
	defer func() {
		if c.last = nil; err == nil {
			c.last = text
		}
	}()
	if c.last == nil || isText(c.last) {
		if same, err := place.has(isText); same || err != nil {
			return false, err
		}
	}
	err = place.put(text, writeOut)
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err == nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if spare := place.putSpare(text); spare != nil {
		return false, fmt.Errorf("%w; nor could the file that is kept for a full disk be used: %w", err, spare)
	}
	return true, nil
}

// Keep makes lasting what Put has put into place.
func (c *Config) Keep() error {
	place := placeOf(c.path)
	err := place.as(func() error {
		file, err := os.Open(place.path)
		if err != nil {
			return err
		}
		return errors.Join(file.Sync(), file.Close())
	})
	if err := errors.Join(err, place.sync()); err != nil {
		return fmt.Errorf("making %s last: %w", c.path, err)
	}
	return nil
}

// PutLasting is Put and then Keep, which is tried until it has succeeded: what was put into place by a call
// that has failed is not yet what a power cut leaves. It reports whether there was anything to do.
func (c *Config) PutLasting(text []byte) (written bool, err error) {
	if written, err = c.Put(text); err != nil || c.lasts && !written {
		return false, err
	}
	c.lasts = false
	if err := c.Keep(); err != nil {
		return written, err
	}
	c.lasts = true
	return true, nil
}

// KeepSpare has room for a next text like this one at hand.
func (c *Config) KeepSpare(text []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return placeOf(c.path).keepSpare(text)
}

// ours begins the files that Lictor's own templates make.
const ours = ";; Written by Lictor's bouncer"

// copyOnce writes a file that must not be there yet. It may hold passwords.
func copyOnce(name string, text []byte) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		_ = os.Remove(name) // half of it is of no use
	}
	return err
}

// KeepBefore keeps the file that somebody else has written, beside it as FILE.before-lictor, and returns that
// name; empty: there is nothing to be kept, or it was kept before. It is called before Put, by the same
// goroutine. What was kept once is never written over.
func (c *Config) KeepBefore() (kept string, err error) {
	if c.looked || c.last != nil {
		return "", nil
	}
	place := placeOf(c.path)
	name := place.path + ".before-lictor"
	err = place.as(func() error {
		text, err := os.ReadFile(place.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case len(bytes.TrimSpace(text)) == 0 || bytes.HasPrefix(text, []byte(ours)) || exists(lastGood(c.path)):
			return nil
		}
		// The name goes to the new file, and this one stays with its mode and owner.
		err = os.Link(place.path, name)
		if errors.Is(err, fs.ErrPermission) { // another user's is not linked (fs.protected_hardlinks)
			err = copyOnce(name, text)
		}
		if err == nil {
			kept = name
		}
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("keeping %s as %s: %w", place.path, name, err)
	}
	c.looked = true
	return kept, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func lastGood(path string) string { return path + ".last-good" }

// KeepGood remembers text as the last one that PgBouncer was seen to have taken.
func (c *Config) KeepGood(text []byte) error {
	if _, err := c.good.Checked(text, unchecked); err != nil {
		return fmt.Errorf("keeping the last good configuration: %w", err)
	}
	return nil
}

// Good is the text that KeepGood has remembered, in this run or an earlier one; nil: there
// is none.
func (c *Config) Good() ([]byte, error) {
	place := placeOf(lastGood(c.path))
	var text []byte
	err := place.as(func() (err error) { text, err = os.ReadFile(place.path); return err })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("last good configuration: %w", err)
	}
	return text, nil
}
