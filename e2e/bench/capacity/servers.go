package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
)

// servers are three Consul servers on this machine.
type servers struct {
	commands []*exec.Cmd
	ports    []int
}

// startServers starts them and waits until they have a leader.
func startServers(ctx context.Context, o options, dir string) (*servers, error) {
	if o.consul == "" {
		return nil, errors.New("no Consul: set CONSUL_BIN to what e2e/tools/consul.sh prints")
	}
	s := &servers{}
	port := func(i, n int) int { return o.port + 5*i + n }
	for i := range 3 {
		name := "server" + strconv.Itoa(i+1)
		config := map[string]any{
			"server": true, "bootstrap_expect": 3, "node_name": name, "bind_addr": "127.0.0.1", "data_dir": filepath.Join(dir, name),
			"performance": map[string]any{"raft_multiplier": 1}, "log_level": "warn",
			"limits": map[string]any{"http_max_conns_per_client": 15000},
			"ports": map[string]any{
				"http": port(i, 0), "server": port(i, 1), "serf_lan": port(i, 2), "serf_wan": port(i, 3), "dns": -1, "grpc": -1, "grpc_tls": -1,
			},
			"retry_join": []string{"127.0.0.1:" + strconv.Itoa(port(0, 2)), "127.0.0.1:" + strconv.Itoa(port(1, 2))},
		}
		text, err := json.Marshal(config)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, name+".json")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, o.consul, "agent", "-config-file", file)
		log, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			return nil, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			s.stop()
			return nil, fmt.Errorf("starting Consul: %w", err)
		}
		s.commands, s.ports = append(s.commands, cmd), append(s.ports, port(i, 0))
	}
	if err := s.awaitLeader(ctx); err != nil {
		s.stop()
		log, _ := os.ReadFile(filepath.Join(dir, "server1.log")) // the error says enough without it
		return nil, fmt.Errorf("%w; server1 says: %s", err, log)
	}
	return s, nil
}

func (s *servers) addresses() []string {
	var list []string
	for _, p := range s.ports {
		list = append(list, "127.0.0.1:"+strconv.Itoa(p))
	}
	return list
}

func (s *servers) awaitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		ready := 0
		for _, address := range s.addresses() {
			client, err := api.NewClient(&api.Config{Address: address})
			if err != nil {
				return err
			}
			// A session needs its node in the catalogue, where a leader puts it.
			nodes, _, err := client.Catalog().Nodes(new(api.QueryOptions).WithContext(ctx))
			if err == nil && len(nodes) == len(s.ports) {
				ready++
			}
		}
		if ready == len(s.ports) {
			return nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("no leader among the servers: %w", err)
		}
	}
}

func (s *servers) stop() {
	for _, cmd := range s.commands {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()         // its exit says what the signal did
	}
}

// sample is what counters say at one moment.
type sample struct {
	at                           time.Time
	raft, renews, answers, bytes float64
	open                         int
	answerSize                   float64
	cpu, rss                     []float64
}

func take(ctx context.Context, s *servers, l *load) (sample, error) {
	out := sample{at: time.Now()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addresses()[0]+"/v1/agent/self", nil)
	if err != nil {
		return out, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	var self struct {
		Stats struct {
			Raft map[string]string `json:"raft"`
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&self); err != nil {
		return out, err
	}
	if out.raft, err = strconv.ParseFloat(self.Stats.Raft["last_log_index"], 64); err != nil {
		return out, err
	}
	out.renews, out.answers, out.bytes, out.open = float64(l.renews.Load()), float64(l.answers.Load()), float64(l.bytes.Load()), int(l.open.Load())
	if out.answers > 0 {
		out.answerSize = float64(l.lastAnswer.Load())
	}
	for _, cmd := range s.commands {
		cpu, rss, err := usage(cmd.Process.Pid)
		if err != nil {
			return out, err
		}
		out.cpu, out.rss = append(out.cpu, cpu), append(out.rss, rss)
	}
	return out, nil
}

// usage is a process's CPU time in seconds and its resident memory in MiB
// (proc_pid_stat(5): utime and stime are fields 14 and 15, rss is 24, in pages).
func usage(pid int) (cpu, rss float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var numbers [3]float64
	for i, n := range []int{11, 12, 21} {
		if numbers[i], err = strconv.ParseFloat(fields[n], 64); err != nil {
			return 0, 0, err
		}
	}
	const ticks = 100 // USER_HZ on Linux
	return (numbers[0] + numbers[1]) / ticks, numbers[2] * float64(os.Getpagesize()) / (1 << 20), nil
}
