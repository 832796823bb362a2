package render

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// consulData answers the functions by which a template asks Consul. It takes the place
// of consul-template's own ones, which hand on whatever stands there: whoever may write
// one key or register one service could write lines of a file, or options into a line.
// Here a value is checked as what it is; as it stands it is only to be had by the
// functions whose names begin with raw.
type consulData struct {
	brain         *template.Brain
	used, missing map[string]dependency.Dependency
	// left are the values that were left out, for the operator.
	left []string
	// waits says what is awaited beside Consul's data. (The errors of functions lose their
	// form on their way through the template.)
	waits error
}

// maxLeft is how many values that were left out are told.
const maxLeft = 20

func newConsulData(brain *template.Brain) *consulData {
	return &consulData{brain: brain, used: map[string]dependency.Dependency{}, missing: map[string]dependency.Dependency{}}
}

func (c *consulData) leave(what string, err error) {
	if text := fmt.Sprintf("%s: %v", what, err); len(c.left) < maxLeft && !slices.Contains(c.left, text) {
		c.left = append(c.left, text)
	}
}

// recall returns the data of a dependency, the zero value as long as there is none.
func recall[T any](c *consulData, d dependency.Dependency) (data T, found bool) {
	c.used[d.String()] = d
	value, found := c.brain.Recall(d)
	if !found {
		c.missing[d.String()] = d
		return data, false
	}
	data, _ = value.(T) // nil: a key that is not there
	return data, true
}

// functions are those of consul-template that ask Consul, by the names that it gives
// them, and each as it stands under raw...
func (c *consulData) functions() map[string]any {
	all := map[string]any{
		"key": checkedText(c.key), "rawKey": c.key,
		"keyOrDefault": func(path, otherwise string) (string, error) {
			text, err := checkedText(c.keyIfThere)(path)
			if text == "" {
				text = otherwise
			}
			return text, err
		},
		"rawKeyOrDefault": func(path, otherwise string) (string, error) {
			text, err := c.keyIfThere(path)
			if text == "" {
				text = otherwise
			}
			return text, err
		},
		"users": func(path string) ([]*dependency.KeyPair, error) {
			list := func(s ...string) ([]*dependency.KeyPair, error) { return c.pairs(s[0], false, true) }
			return leaveOut(c, "users", list, cleanUser, []string{path})
		},
		"keyExists": func(path string) (bool, error) {
			text, err := c.keyIfThere(path)
			return text != "", err
		},
	}
	for name, keep := range map[string]struct {
		deep, mayBeEmpty bool
	}{"ls": {false, true}, "safeLs": {false, false}, "tree": {true, true}, "safeTree": {true, false}} {
		list := func(path string) ([]*dependency.KeyPair, error) { return c.pairs(path, keep.deep, keep.mayBeEmpty) }
		all[name] = checked(list, checkPair)
		all["raw"+strings.ToUpper(name[:1])+name[1:]] = list
	}
	for name, lists := range map[string][2]any{
		"service": {
			func(s ...string) ([]*dependency.HealthService, error) {
				return leaveOut(c, "service", c.service, cleanService, s)
			}, c.service,
		},
		"connect": {
			func(s ...string) ([]*dependency.HealthService, error) {
				return leaveOut(c, "connect", c.connect, cleanService, s)
			}, c.connect,
		},
		"services": {
			func(s ...string) ([]*dependency.CatalogSnippet, error) {
				return leaveOut(c, "services", c.services, cleanSnippet, s)
			}, c.services,
		},
		"nodes": {
			func(s ...string) ([]*dependency.Node, error) { return leaveOut(c, "nodes", c.nodes, cleanNode, s) }, c.nodes,
		},
		"node": {c.checkedNode, c.node},
	} {
		all[name], all["raw"+strings.ToUpper(name[:1])+name[1:]] = lists[0], lists[1]
	}
	// What these return has no form that could be checked, and no use in a pooler's file.
	for _, name := range []string{"caLeaf", "caRoots", "exportedServices", "partitions", "peerings", "datacenters"} {
		all[name] = func(...any) (string, error) {
			return "", fmt.Errorf("%s is not among the functions of a bouncer's template", name)
		}
	}
	return all
}

func (c *consulData) key(path string) (string, error) {
	d, err := dependency.NewKVGetQuery(path)
	if err != nil {
		return "", err
	}
	d.EnableBlocking()
	text, _ := recall[string](c, d)
	return text, nil
}

// keyIfThere is key without waiting for one that is not there.
func (c *consulData) keyIfThere(path string) (string, error) {
	d, err := dependency.NewKVGetQuery(path)
	if err != nil {
		return "", err
	}
	text, _ := recall[string](c, d)
	return text, nil
}

// pairs lists the keys under a path: those directly below it or, deep, all.
func (c *consulData) pairs(path string, deep, mayBeEmpty bool) (list []*dependency.KeyPair, err error) {
	d, err := dependency.NewKVListQuery(path)
	if err != nil {
		return nil, err
	}
	all, found := recall[[]*dependency.KeyPair](c, d)
	for _, pair := range all {
		if pair.Key != "" && !strings.HasSuffix(pair.Key, "/") && (deep || !strings.Contains(pair.Key, "/")) {
			list = append(list, pair)
		}
	}
	if found && len(list) == 0 && !mayBeEmpty {
		c.missing[d.String()] = d
	}
	return list, nil
}

func (c *consulData) service(s ...string) ([]*dependency.HealthService, error) {
	d, err := dependency.NewHealthServiceQuery(strings.Join(s, "|"))
	if err != nil {
		return nil, err
	}
	list, _ := recall[[]*dependency.HealthService](c, d)
	return list, nil
}

func (c *consulData) connect(s ...string) ([]*dependency.HealthService, error) {
	d, err := dependency.NewHealthConnectQuery(strings.Join(s, "|"))
	if err != nil {
		return nil, err
	}
	list, _ := recall[[]*dependency.HealthService](c, d)
	return list, nil
}

func (c *consulData) services(s ...string) ([]*dependency.CatalogSnippet, error) {
	d, err := dependency.NewCatalogServicesQuery(strings.Join(s, ""))
	if err != nil {
		return nil, err
	}
	list, _ := recall[[]*dependency.CatalogSnippet](c, d)
	return list, nil
}

func (c *consulData) nodes(s ...string) ([]*dependency.Node, error) {
	d, err := dependency.NewCatalogNodesQuery(strings.Join(s, ""))
	if err != nil {
		return nil, err
	}
	list, _ := recall[[]*dependency.Node](c, d)
	return list, nil
}

func (c *consulData) node(s ...string) (*dependency.CatalogNode, error) {
	d, err := dependency.NewCatalogNodeQuery(strings.Join(s, ""))
	if err != nil {
		return nil, err
	}
	node, _ := recall[*dependency.CatalogNode](c, d)
	return node, nil
}

func (c *consulData) checkedNode(s ...string) (*dependency.CatalogNode, error) {
	node, err := c.node(s...)
	if err != nil || node == nil || node.Node == nil {
		return node, err
	}
	clean, err := cleanNode(node.Node)
	if err != nil {
		return nil, err
	}
	services, err := leaveOut(c, "node", func(...string) ([]*dependency.CatalogNodeService, error) { return node.Services, nil }, cleanNodeService, nil)
	return &dependency.CatalogNode{Node: clean, Services: services}, err
}

// checkedText is a function for a text, which must be one word.
func checkedText(ask func(path string) (string, error)) func(path string) (string, error) {
	return func(path string) (string, error) {
		text, err := ask(path)
		if err == nil && text != "" {
			err = checkWord(text)
		}
		if err != nil {
			return "", fmt.Errorf("the value of %s %w; rawKey has it as it stands", path, err)
		}
		return text, nil
	}
}

// checked is a list function of whose values each one must pass: a list of users from
// which some are left out would be another list.
func checked[T any](ask func(path string) ([]T, error), check func(T) error) func(path string) ([]T, error) {
	return func(path string) ([]T, error) {
		list, err := ask(path)
		for _, one := range list {
			if err == nil {
				err = check(one)
			}
		}
		if err != nil {
			return nil, err
		}
		return list, nil
	}
}

// leaveOut cleans a list of what any host may have registered: one that does not pass
// keeps the others from nothing.
func leaveOut[T any](c *consulData, what string, ask func(...string) ([]*T, error), clean func(*T) (*T, error), args []string) (list []*T, err error) {
	all, err := ask(args...)
	for _, one := range all {
		passed, err := clean(one)
		if err != nil {
			c.leave(what, err)
			continue
		}
		list = append(list, passed)
	}
	return list, err
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isWord reports whether a value means nothing but itself in a file of settings, in a list
// of options and in a command line.
func isWord(text string) bool {
	if option, dashed := strings.CutPrefix(text, "-"); dashed && strings.IndexAny(option, digits) != 0 {
		return false
	}
	return text != "" && strings.Trim(text, letters+digits+"_./:@+=,~-") == ""
}

var errWord = errors.New("is not one word of letters, digits and . _ - : / @ + = , ~")

// checkWord says nothing of the value: of a key it may be a password.
func checkWord(text string) error {
	if len(text) > 1024 || !isWord(text) {
		return errWord
	}
	return nil
}

func checkPair(pair *dependency.KeyPair) error {
	err := checkWord(pair.Path)
	if err == nil && pair.Value != "" {
		err = checkWord(pair.Value)
	}
	if err != nil {
		return fmt.Errorf("the key %s or its value %w; rawLs and rawTree have them as they stand", printable.Quote(pair.Path), err)
	}
	return nil
}

// cleanUser is a user whom PgBouncer can read from its file of users.
func cleanUser(pair *dependency.KeyPair) (*dependency.KeyPair, error) {
	if err := pgbouncer.CheckUser(pair.Key, pair.Value); err != nil {
		return nil, fmt.Errorf("user %s: %w", printable.Quote(pair.Key), err)
	}
	return pair, nil
}

// cleanService is an instance of a service with what has been checked. What its checks
// say is text, and left out.
func cleanService(s *dependency.HealthService) (*dependency.HealthService, error) {
	c := *s
	c.Checks = nil
	c.Tags, c.ServiceMeta, c.NodeMeta = words(c.Tags), wordMap(c.ServiceMeta), wordMap(c.NodeMeta)
	c.NodeTaggedAddresses, c.ServiceTaggedAddresses = hostMap(c.NodeTaggedAddresses), maps.Clone(c.ServiceTaggedAddresses)
	maps.DeleteFunc(c.ServiceTaggedAddresses, func(name string, a api.ServiceAddress) bool {
		return checkWord(name) != nil || cluster.CheckHost(a.Address) != nil || cluster.CheckPort(a.Port) != nil
	})
	return &c, registered(c.Name, []string{c.Node, c.NodeID, c.ID, c.Name, c.Status}, []string{c.Address, c.NodeAddress}, c.Port)
}

func cleanNodeService(s *dependency.CatalogNodeService) (*dependency.CatalogNodeService, error) {
	c := *s
	c.Tags, c.Meta = words(c.Tags), wordMap(c.Meta)
	return &c, registered(c.Service, []string{c.ID, c.Service}, []string{c.Address}, c.Port)
}

func cleanSnippet(s *dependency.CatalogSnippet) (*dependency.CatalogSnippet, error) {
	return &dependency.CatalogSnippet{Name: s.Name, Tags: words(s.Tags)}, registered(s.Name, []string{s.Name}, nil, 0)
}

func cleanNode(n *dependency.Node) (*dependency.Node, error) {
	c := *n
	c.Meta, c.TaggedAddresses = wordMap(c.Meta), hostMap(c.TaggedAddresses)
	return &c, registered(c.Node, []string{c.ID, c.Node, c.Datacenter}, []string{c.Address}, 0)
}

// registered checks what a host has registered; what is empty or 0 is not set.
func registered(what string, names, hosts []string, port int) error {
	var errs []error
	for _, name := range names {
		if name != "" && checkWord(name) != nil {
			errs = append(errs, fmt.Errorf("%s %w", printable.Quote(name), errWord))
		}
	}
	for _, host := range hosts {
		if host != "" && cluster.CheckHost(host) != nil {
			errs = append(errs, fmt.Errorf("address %s %s", printable.Quote(host), cluster.HostRule))
		}
	}
	if port != 0 {
		errs = append(errs, cluster.CheckPort(port))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", printable.Quote(what), err)
	}
	return nil
}

func words(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return checkWord(s) != nil })
}

func wordMap(m map[string]string) map[string]string {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(name, value string) bool { return checkWord(name) != nil || checkWord(value) != nil })
	return m
}

func hostMap(m map[string]string) map[string]string {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(name, host string) bool { return checkWord(name) != nil || cluster.CheckHost(host) != nil })
	return m
}

// member is a member for a template, with those of its tags that are words, numbers or
// switches.
func plainMember(m cluster.RouteMember) cluster.RouteMember {
	m.Tags = maps.Clone(m.Tags)
	maps.DeleteFunc(m.Tags, func(name string, value any) bool {
		switch value := value.(type) {
		case bool, float64, int:
			return checkWord(name) != nil
		case string:
			return checkWord(name) != nil || checkWord(value) != nil
		}
		return true
	})
	return m
}

func plainMembers(list []cluster.RouteMember) []cluster.RouteMember {
	list = slices.Clone(list)
	for i := range list {
		list[i] = plainMember(list[i])
	}
	return list
}

// defaultAPIPort is that of an agent's REST API.
const defaultAPIPort = 8008

// haproxyName writes a name as HAProxy takes it for a proxy or a server: bytes beyond
// letters, digits and . _ - become a colon and two digits, so that two names stay two.
func haproxyName(name string) (string, error) {
	if name == "" {
		return "", errors.New("an empty name is none of HAProxy's")
	}
	var out strings.Builder
	for _, b := range []byte(name) {
		if b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("._-", b) >= 0 {
			out.WriteByte(b)
		} else {
			fmt.Fprintf(&out, ":%02x", b)
		}
	}
	return out.String(), nil
}

// resolvesLate reports whether HAProxy looks a host up while it runs.
func resolvesLate(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil && strings.Contains(host, ".")
}

// haproxyResolve is how HAProxy finds the address of a host. The system's resolver takes as long as whoever serves a
// name's zone likes, one name after the other, before HAProxy has read its file; that of a name without dots is the
// site's own.
func haproxyResolve(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	if resolvesLate(host) {
		return " init-addr last,none resolvers lictor"
	}
	return " init-addr last,libc,none"
}

// checkFunctions check a value that a template got as it stands.
func checkFunctions() map[string]any {
	check := func(rule func(string) error) func(string) (string, error) {
		return func(text string) (string, error) {
			if err := rule(text); err != nil {
				return "", fmt.Errorf("the value %w", err) // which may be a password
			}
			return text, nil
		}
	}
	return map[string]any{
		"as_name": check(cluster.CheckName), "as_host": check(cluster.CheckHost), "as_word": check(checkWord),
		"as_port": func(value any) (int, error) {
			port, err := strconv.Atoi(fmt.Sprint(value))
			if err == nil {
				err = cluster.CheckPort(port)
			}
			if err != nil {
				return 0, errors.New("the value must be a port, from 1 to 65535")
			}
			return port, nil
		},
	}
}
