package render

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// mostPorts is of how many members of a shard the ports are asked for: whoever may write its route may name
// thousands there.
const mostPorts = 64

// memberPorts are the ports of the REST APIs of a shard's members, from the keys of those that its route names: there
// may be any number of others. A member writes its key each time that it has replayed something, and its port hardly ever
// changes; so the keys are looked at now and then: a query that waits for a change would be
// one connection to Consul for each shard, which allows 200 to one address.
type memberPorts struct {
	prefix, names string // the names have blanks between them
}

func newMemberPorts(v *Shard) memberPorts {
	keys := cluster.NewKeys(v.template.Namespace, v.template.Scope, "")
	var names []string
	for _, m := range append([]cluster.RouteMember{v.Route.Leader}, v.Route.Replicas...) {
		if cluster.CheckName(m.Name) == nil {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return memberPorts{keys.Members(), strings.Join(names[:min(len(names), mostPorts)], " ")}
}

// memberPort is the port of one member, or why it is not known.
type memberPort struct {
	port    int
	problem string
}

func (p memberPorts) String() string        { return "ports of " + p.prefix + ": " + p.names }
func (p memberPorts) CanShare() bool        { return true }
func (p memberPorts) Stop()                 {}
func (p memberPorts) Type() dependency.Type { return dependency.TypeConsul }

// Fetch reads the keys, one after the other.
func (p memberPorts) Fetch(clients *dependency.ClientSet, options *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	ports := map[string]memberPort{}
	for _, name := range strings.Fields(p.names) {
		pair, _, err := clients.Consul().KV().Get(p.prefix+name, &api.QueryOptions{Datacenter: options.Datacenter})
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", p.prefix+name, err)
		}
		if pair != nil {
			ports[name] = portOf(name, pair.Value)
		}
	}
	return ports, &dependency.ResponseMetadata{}, nil
}

// portOf reads the key of a member.
func portOf(name string, value []byte) (one memberPort) {
	var member cluster.Member
	err := printable.Error(json.Unmarshal(value, &member))
	if err == nil {
		member.Name = name
		_, one.port, err = member.APIAddress()
	}
	if err != nil {
		one.problem = err.Error()
	}
	return one
}

// isSame reports whether data that was fetched is what it was before.
func (p memberPorts) isSame(data, before any) bool {
	now, _ := data.(map[string]memberPort)
	then, fetched := before.(map[string]memberPort)
	return fetched && maps.Equal(now, then)
}

// apiPort is the port of a member's REST API, by its own key. A key that does not say
// keeps no other shard from its file.
func (c *consulData) apiPort(v *Shard, m cluster.RouteMember) int {
	ports, _ := recall[map[string]memberPort](c, newMemberPorts(v))
	one, found := ports[m.Name]
	if found && one.problem != "" {
		c.leave("shard "+string(v.ID), fmt.Errorf("%s; port %d is taken", one.problem, defaultAPIPort))
	}
	if !found || one.problem != "" {
		return defaultAPIPort
	}
	return one.port
}
