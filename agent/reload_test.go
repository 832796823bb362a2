package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// A request that changes the dynamic configuration reads nothing that a reload writes (with
// -race).
func TestAReloadDuringAChange(t *testing.T) {
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		w.Header().Set("X-Consul-LastContact", "0")
		w.Header().Set("X-Consul-KnownLeader", "true")
		if !strings.HasSuffix(r.URL.Path, "/orders/") {
			w.WriteHeader(http.StatusNotFound) // there is no route
			return
		}
		_ = json.NewEncoder(w).Encode([]map[string]any{{"Key": "service/orders/config", "ModifyIndex": 7, "Value": base64.StdEncoding.EncodeToString([]byte(`{"ttl":9}`))}})
	}))
	defer consul.Close()
	dir := t.TempDir()
	testkit.Must(t, os.Chmod(filepath.Dir(dir), 0o755)) //nolint:gosec // PostgreSQL's user runs a program in it
	path := filepath.Join(dir, "db.yml")
	testkit.WriteProgram(t, filepath.Join(dir, "postgres"), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 15.4'\n"))
	testkit.Must(t, os.WriteFile(path, []byte(`
scope: orders
name: a
consul: {host: "`+consul.URL+`"}
restapi: {listen: "127.0.0.1:8008", connect_address: "127.0.0.1:8008"}
postgresql:
  listen: 127.0.0.1:5432
  data_dir: `+filepath.Join(dir, "data")+`
  bin_dir: `+dir+`
  authentication: {superuser: {password: x}, replication: {username: replicator, password: x}}
`), 0o600))
	cfg, _, err := config.Load(config.Source{Path: path})
	testkit.Must(t, err)
	a, err := New(cfg, Options{Log: zerolog.Nop()})
	testkit.Must(t, err)
	a.ctx, a.end = context.WithCancel(t.Context())
	defer a.end()
	done := make(chan error, 1)
	go func() {
		var err error
		for range 20 {
			if err == nil {
				_, _, err = a.node.ChangeConfig(a.ctx, func(raw map[string]any) (map[string]any, error) { return raw, nil })
			}
		}
		done <- err
	}()
	for { // this is the loop's goroutine
		a.conf.reconfigure(cfg)
		select {
		case err := <-done:
			testkit.Must(t, err)
			return
		default:
		}
	}
}
