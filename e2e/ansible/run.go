package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// playTimeout bounds one playbook; it says nothing about how fast they are.
const playTimeout = 30 * time.Minute

// ansible runs playbooks of the collection against a site.
type ansible struct {
	site        *site
	collections string
	inventory   map[string]any
	vars        map[string]any // the inventory's variables of all hosts
}

// collectionTree makes the tree that Ansible looks for collections in, with a link
// to the folder ansible/ of this repository.
func collectionTree(dir string) (string, error) {
	source, err := filepath.Abs("../../ansible")
	if err != nil {
		return "", err
	}
	parent := filepath.Join(dir, "ansible_collections", "lictor_ha")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	// No configuration of this machine or its user.
	err = os.WriteFile(filepath.Join(dir, "ansible.cfg"), []byte("[defaults]\n"), 0o600)
	if err == nil {
		err = os.Symlink(source, filepath.Join(parent, "lictor"))
	}
	return dir, err
}

// newAnsible describes the site as an inventory. groups are names of hosts by
// group.
func newAnsible(s *site, groups map[string][]string, vars map[string]any) (*ansible, error) {
	tree, err := collectionTree(filepath.Join(s.dir, "collections"))
	if err != nil {
		return nil, err
	}
	all := map[string]any{
		"ansible_user": "root", "ansible_python_interpreter": "/usr/bin/python3",
		"ansible_ssh_private_key_file": s.key(), "ansible_ssh_common_args": strings.Join(sshOptions(), " "),
	}
	maps.Copy(all, vars)
	a := &ansible{site: s, collections: tree, vars: all, inventory: map[string]any{"all": map[string]any{"vars": all}}}
	for group, names := range groups {
		hosts := map[string]any{}
		for _, name := range names {
			hosts[name] = map[string]any{"ansible_host": s.host(name).address}
		}
		a.inventory[group] = map[string]any{"hosts": hosts}
	}
	return a, nil
}

// result is what a playbook did.
type result struct {
	changed []string // "host: task", once for each item of a loop
	failed  []string // "host: task: what went wrong"
	changes int      // tasks that changed something, as in the recap
	hosts   int
	took    time.Duration
}

// play runs a playbook of the collection to its end, and fails when a task does.
func (a *ansible) play(ctx context.Context, playbook string, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, playTimeout)
	defer cancel()
	text, err := json.Marshal(a.inventory)
	if err != nil {
		return result{}, err
	}
	inventory := filepath.Join(a.site.dir, "inventory.json") // JSON is YAML
	if err := os.WriteFile(inventory, text, 0o600); err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, "ip", append([]string{
		"netns", "exec", a.site.netns(), "ansible-playbook", "-i", inventory, "lictor_ha.lictor." + playbook,
	}, args...)...)
	cmd.Env = append(ansibleEnvironment(a.collections, a.site.dir), "ANSIBLE_FORKS=10", "ANSIBLE_PIPELINING=true",
		"ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=60s", "ANSIBLE_SSH_CONTROL_PATH_DIR="+filepath.Join(a.site.dir, "cp"))
	log, err := os.Create(filepath.Join(a.site.dir, playbook+".log"))
	if err != nil {
		return result{}, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	failure := cmd.Run()
	r := result{took: time.Since(start)}
	out, err := os.ReadFile(log.Name())
	if err != nil {
		return r, err
	}
	r.read(string(out))
	if failure != nil {
		return r, fmt.Errorf("playbook %s: %w\n%s\n%s", playbook, failure, strings.Join(r.failed, "\n"), out[max(0, len(out)-4000):])
	}
	if r.hosts == 0 {
		return r, fmt.Errorf("playbook %s did nothing on any host:\n%s", playbook, out)
	}
	return r, nil
}

// ansibleEnvironment is all that Ansible gets of the environment.
func ansibleEnvironment(collections, home string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + home, "ANSIBLE_CONFIG=" + filepath.Join(collections, "ansible.cfg"), "ANSIBLE_NOCOLOR=1",
		"ANSIBLE_COLLECTIONS_PATH=" + collections, "ANSIBLE_COLLECTIONS_PATHS=" + collections, "ANSIBLE_RETRY_FILES_ENABLED=false",
		"ANSIBLE_LOCALHOST_WARNING=false",
	}
}

// read takes what Ansible's default callback prints apart.
func (r *result) read(out string) {
	task := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, ": [")
		host, detail, _ := strings.Cut(rest, "]")
		switch word {
		case "changed":
			r.changed = append(r.changed, host+": "+task)
		case "fatal", "failed":
			r.failed = append(r.failed, host+": "+task+detail)
		}
		if name, ok := strings.CutPrefix(line, "TASK ["); ok {
			task, _, _ = strings.Cut(name, "] *")
		}
		// consul1 : ok=13 changed=0 unreachable=0 failed=0 ...
		if _, counts, ok := strings.Cut(line, ": ok="); ok {
			r.hosts++
			var n int
			if _, after, found := strings.Cut(counts, "changed="); found {
				_, _ = fmt.Sscan(after, &n) // Ansible prints numbers
			}
			r.changes += n
		}
	}
}
