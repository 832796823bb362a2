package postgres

import (
	"errors"
	"fmt"
	"os"
)

// dynamicCache is where Patroni keeps the last dynamic configuration, too: within
// the data directory, so that it goes where the data goes.
const dynamicCache = "patroni.dynamic.json"

// CacheDynamic keeps the dynamic configuration beside the data: a shard that is
// new to Consul begins with it.
func (p *Instance) CacheDynamic(config []byte) error {
	if before, err := p.CachedDynamic(); err == nil && string(before) == string(config) {
		return nil
	}
	if _, err := p.disk.Stat(p.inData("PG_VERSION")); err != nil {
		return nil //nolint:nilerr // no data directory, nothing to keep it in
	}
	return p.writeFile(p.inData(dynamicCache), string(config))
}

// CachedDynamic is what CacheDynamic has kept, nil when there is nothing.
func (p *Instance) CachedDynamic() ([]byte, error) {
	content, err := p.disk.ReadFile(p.inData(dynamicCache))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the kept dynamic configuration: %w", err)
	}
	return content, nil
}
