package postgres

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// records are what the agent notes down beside the data for its later runs.
type records struct{ *installation }

// CallbackState is what the callbacks were told last: of which start of PostgreSQL, in
// which role. It is kept in a file, so that an agent that starts anew, or another
// binary in its place, tells nothing twice and misses no change of role.
type CallbackState struct {
	Role string `json:"role"`
	// Started is when that PostgreSQL was started; zero: it has stopped since.
	Started time.Time `json:"started"`
}

// RecallCallbackState is what an earlier agent has told about this data directory; zero
// when there is nothing, or when it was about another one.
func (p *records) RecallCallbackState() (CallbackState, error) {
	content, err := p.disk.ReadFile(p.stateFile("told"))
	if errors.Is(err, os.ErrNotExist) {
		return CallbackState{}, nil
	}
	if err != nil {
		return CallbackState{}, fmt.Errorf("what the callbacks were told last: %w", err)
	}
	var kept struct {
		CallbackState
		Identity string `json:"identity"`
	}
	if err := json.Unmarshal(content, &kept); err != nil {
		return CallbackState{}, fmt.Errorf("what the callbacks were told last: %s: %w", p.stateFile("told"), err)
	}
	// Where it cannot be told whether it is the same, it most likely is, on a disk that has another number since the last boot.
	if about, err := p.isAbout(p.dataDir, kept.Identity, p.stateFile("told")); !about && !errors.Is(err, errUnsureIdentity) {
		return CallbackState{}, nil //nolint:nilerr // there is no such data directory any more
	}
	return kept.CallbackState, nil
}

// KeepCallbackState keeps it.
func (p *records) KeepCallbackState(t CallbackState) error {
	id, err := identity(p.dataDir)
	if err != nil {
		return fmt.Errorf("keeping what the callbacks were told: %w", err)
	}
	content, err := json.Marshal(struct {
		CallbackState
		Identity string `json:"identity"`
	}{t, id})
	if err != nil {
		return fmt.Errorf("keeping what the callbacks were told: %w", err)
	}
	return p.writeFile(p.stateFile("told"), string(content)+"\n")
}

// VerificationNote is what the last verification of a backup on this host has noted down;
// nil: there was none.
func (p *records) VerificationNote() ([]byte, error) {
	content, err := p.disk.ReadFile(p.stateFile("verified"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the note of the last verification: %w", err)
	}
	return content, nil
}

// Secret is what KeepSecret has left; nil: nothing.
func (p *records) Secret() ([]byte, error) {
	content, err := p.disk.ReadFile(p.stateFile("secret"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the shard's secret: %w", err)
	}
	return content, nil
}

// KeepSecret keeps the shard's secret for the next run of the agent, for its user's
// eyes alone.
func (p *records) KeepSecret(content []byte) error {
	err := p.makeStateDir()
	if err == nil {
		err = p.disk.Replace(p.stateFile("secret"), content, 0o600)
	}
	if err != nil {
		return fmt.Errorf("the shard's secret: %w", err)
	}
	return nil
}

// dynamicCache is where Patroni keeps the last dynamic configuration, too: within
// the data directory, so that it goes where the data goes.
const dynamicCache = "patroni.dynamic.json"

// CacheDynamic keeps the dynamic configuration beside the data: a shard that is
// new to Consul begins with it.
func (p *records) CacheDynamic(config []byte) error {
	if before, err := p.CachedDynamic(); err == nil && string(before) == string(config) {
		return nil
	}
	if _, err := p.disk.Stat(p.inData("PG_VERSION")); err != nil {
		return nil //nolint:nilerr // no data directory, nothing to keep it in
	}
	return p.writeFile(p.inData(dynamicCache), string(config))
}

// CachedDynamic is what CacheDynamic has kept, nil when there is nothing.
func (p *records) CachedDynamic() ([]byte, error) {
	content, err := p.disk.ReadFile(p.inData(dynamicCache))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the kept dynamic configuration: %w", err)
	}
	return content, nil
}
