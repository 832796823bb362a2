package postgres

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Loss is the one that was noted last, nil when there is none. One that cannot be read
// counts as one of which nothing is known.
func (p *records) Loss() *Loss {
	content, err := p.disk.ReadFile(p.stateFile("loss"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var l Loss
	if err == nil {
		err = json.Unmarshal(content, &l)
	}
	if err != nil {
		p.log.Error().Err(err).Str("file", p.stateFile("loss")).Msg("it is not known what the data that were replaced had acknowledged")
		return &Loss{}
	}
	return &l
}

// noteLoss is called before data that may have acknowledged something are touched.
func (p *records) noteLoss() error { return p.writeLoss(Loss{ID: rand.Text()}) }

// KeepLoss keeps what is known by now, unless there was another loss since.
func (p *records) KeepLoss(l Loss) error {
	if now := p.Loss(); now == nil || now.ID != l.ID {
		return errors.New("the data have been replaced again meanwhile")
	}
	return p.writeLoss(l)
}

func (p *records) writeLoss(l Loss) error {
	content, err := json.Marshal(l)
	if err == nil {
		err = p.makeStateDir()
	}
	if err == nil {
		err = p.disk.Replace(p.stateFile("loss"), content, 0o600)
	}
	if err == nil {
		err = p.syncDir(p.stateDir)
	}
	if err != nil {
		return fmt.Errorf("noting that the data are replaced (set lictor.state_dir to a writable directory): %w", err)
	}
	return nil
}

// ForgetLoss ends it, unless there was another one since.
func (p *records) ForgetLoss(id string) error {
	if now := p.Loss(); now == nil || now.ID != id {
		return nil
	}
	return p.endLoss()
}

// endLoss ends whatever was noted.
func (p *records) endLoss() error {
	switch err := p.disk.Remove(p.stateFile("loss")); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("noting that the data are whole again: %w", err)
	}
	return p.syncDir(p.stateDir)
}
