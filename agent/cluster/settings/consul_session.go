package settings

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/consul/api"
)

// missingNode is Consul's word for a session of a node that it does not know
// (agent/consul/state/session.go, ErrMissingNode).
const missingNode = "Missing node registration"

// CreateSession makes a session at the Consul agent that c asks. It belongs to the node that
// entry names, whichever agent that is: nobody needs a right to end it who has none on that
// node. Consul forgets a node whose agent has left; until it is back the session is one of
// the node that is asked, if the token may have one there. Without entry.Checks it rests on
// no health check.
func CreateSession(ctx context.Context, c *api.Client, entry api.SessionEntry) (id string, err error) {
	create := c.Session().CreateNoChecks
	if len(entry.Checks) > 0 {
		create = c.Session().Create
	}
	write := (&api.WriteOptions{}).WithContext(ctx)
	id, _, err = create(&entry, write)
	var answer api.StatusError
	if entry.Node != "" && errors.As(err, &answer) && strings.Contains(answer.Body, missingNode) {
		entry.Node = ""
		id, _, err = create(&entry, write)
	}
	return id, err
}
