package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Run is a backup to be taken.
type Run struct {
	// PgBackRest is the program with its own options.
	PgBackRest   []string
	Stanza, Type string
	// As is the member that this is run on; where another one is chosen, nothing is run.
	// Empty: on the host of the repository.
	As string
	// Hosts are the members in the order of pg1-host, pg2-host, ... of the repository's
	// host, each with its address; empty on a member, which is pg1 itself.
	Hosts []Host
}

// Host is a member as pgBackRest on the repository's host knows it.
type Host struct{ Member, Address string }

// Command is what to run for a shard as it is now; nil: another member does it.
func (r Run) Command(shard api.ClusterView) (argv []string, from Source, err error) {
	var able func(string) bool
	if len(r.Hosts) > 0 {
		able = func(name string) bool { return r.host(name) >= 0 }
	}
	if from, err = Choose(shard, able); err != nil {
		return nil, Source{}, err
	}
	if r.As != "" && from.Member != r.As {
		return nil, from, nil
	}
	argv = append(slices.Clone(r.PgBackRest), "--stanza="+r.Stanza, "--type="+r.Type)
	if !from.Standby {
		return append(argv, "--no-backup-standby", "backup"), from, nil
	}
	argv = append(argv, "--backup-standby")
	// pgBackRest reads the files of the first replica that it finds.
	if i := r.host(from.Member); i > 0 {
		argv = append(argv, "--pg1-host="+r.Hosts[i].Address, "--pg"+strconv.Itoa(i+1)+"-host="+r.Hosts[0].Address)
	}
	return append(argv, "backup"), from, nil
}

func (r Run) host(member string) int {
	return slices.IndexFunc(r.Hosts, func(h Host) bool { return h.Member == member })
}

// AskAgents asks the agents of a shard in turn how it is, until one answers. No rights are
// needed for that, and no Consul: the host of a repository may know the members alone.
func AskAgents(ctx context.Context, client *api.Client, urls []string) (api.ClusterView, error) {
	errs := []error{errors.New("no agent of the shard says who leads")}
	for _, url := range urls {
		shard, err := askAgent(ctx, client, url)
		if err == nil {
			return shard, nil
		}
		errs = append(errs, err)
	}
	return api.ClusterView{}, errors.Join(errs...)
}

func askAgent(ctx context.Context, client *api.Client, url string) (shard api.ClusterView, err error) {
	ctx, cancel := context.WithTimeout(ctx, agentLimit)
	defer cancel()
	answer, err := client.Ask(ctx, api.Peer{APIURL: url}, "/cluster")
	if err != nil {
		return shard, err
	}
	if answer.Status != http.StatusOK {
		return shard, fmt.Errorf("%s answers %d", url, answer.Status)
	}
	if err := json.Unmarshal([]byte(answer.Text), &shard); err != nil {
		return shard, fmt.Errorf("%s answers no shard: %w", url, printable.Error(err))
	}
	return shard, nil
}
