package render

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/hashicorp/consul-template/dependency"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// memberPorts are the ports of the REST APIs of a shard's members, from their keys. A member
// writes its key each time that it has replayed something, and its port hardly ever
// changes; so the keys are looked at now and then: a query that waits for a change would be
// one connection to Consul for each shard, which allows 200 to one address.
type memberPorts struct {
	*dependency.KVListQuery
}

// memberPort is the port of one member, or why it is not known.
type memberPort struct {
	port    int
	problem string
}

func (p memberPorts) String() string { return "ports of " + p.KVListQuery.String() }

// Fetch reads the keys at once.
func (p memberPorts) Fetch(clients *dependency.ClientSet, options *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	data, meta, err := p.KVListQuery.Fetch(clients, &dependency.QueryOptions{Datacenter: options.Datacenter})
	if err != nil {
		return nil, nil, err
	}
	list, _ := data.([]*dependency.KeyPair)
	return portsOf(list), meta, nil
}

// portsOf reads the keys of members.
func portsOf(list []*dependency.KeyPair) map[string]memberPort {
	ports := map[string]memberPort{}
	for _, pair := range list {
		var (
			member cluster.Member
			one    memberPort
		)
		err := printable.Error(json.Unmarshal([]byte(pair.Value), &member))
		if err == nil {
			member.Name = pair.Key
			_, one.port, err = member.APIAddress()
		}
		if err != nil {
			one.problem = err.Error()
		}
		ports[pair.Key] = one
	}
	return ports
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
	keys := cluster.NewKeys(v.template.Namespace, v.template.Scope, "")
	list, err := dependency.NewKVListQuery(keys.Members())
	if err == nil {
		ports, _ := recall[map[string]memberPort](c, memberPorts{list})
		one, found := ports[m.Name]
		switch {
		case found && one.problem == "":
			return one.port
		case found:
			err = fmt.Errorf("%s", one.problem)
		default:
			return defaultAPIPort
		}
	}
	c.leave("shard "+string(v.ID), fmt.Errorf("%w; port %d is taken", err, defaultAPIPort))
	return defaultAPIPort
}
