package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Explain is what a command says of the error that it ends with: in one line, where
// that is possible, what failed and what to do about it. The common failures around
// Consul and the members' REST API get words of their own.
// What it returns has nothing that a terminal acts on, and is cut.
func Explain(err error) string { return printable.Lines(printable.Cut(explain(err), maxExplained)) }

// maxExplained is how many bytes an explanation has: every member of a shard may have said
// something.
const maxExplained = 4 * printable.MaxText

func explain(err error) string {
	var status consulapi.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusForbidden:
		return fmt.Sprintf("%v; Consul does not know the token, or it may not do that: see consul.token_file or consul.token, and --consul-token-file", err)
	case errors.As(err, &status) && status.Code == http.StatusInternalServerError && strings.Contains(status.Body, "No cluster leader"):
		return "Consul has no leader now: most of its servers must run and see each other (consul operator raft list-peers)"
	}
	var consul, members []string
	for _, u := range failedRequests(err) {
		at, parsed := url.Parse(u.URL)
		if parsed != nil {
			continue
		}
		said := at.Host + ": " + why(u.Err)
		switch {
		case strings.HasPrefix(at.Path, "/v1/") && !slices.Contains(consul, said):
			consul = append(consul, said)
		case !strings.HasPrefix(at.Path, "/v1/"):
			members = append(members, said)
		}
	}
	said := strings.ReplaceAll(inWords(err.Error()), "\n", "; ") // one line for all members
	switch {
	case len(consul) > 0 && len(members) == 0 && noTLS(err):
		return fmt.Sprintf("Consul cannot be asked at %s; see consul.cacert, consul.cert and consul.scheme of the configuration file", strings.Join(consul, ", "))
	case len(consul) > 0 && len(members) == 0:
		return fmt.Sprintf("Consul cannot be asked at %s; see that its agent runs there, or name another one with --consul or consul.host", strings.Join(consul, ", "))
	case len(members) > 0 && len(consul) == 0 && noTLS(err):
		return said + "; see ctl.cacert and ctl.certfile (or restapi.cafile and restapi.certfile) of the configuration file, which --config names"
	case len(members) > 0 && len(consul) == 0:
		return said + "; see that the agent runs there, and that its restapi.connect_address can be reached from here"
	}
	return inWords(err.Error())
}

// neverSent reports whether a request cannot have reached the member: nobody was there,
// or the two have not agreed on TLS, which comes before the request.
func neverSent(err error) bool {
	var op *net.OpError
	if unproved(err) { // of several members one has answered
		return false
	}
	return errors.Is(err, errUnreachable) || errors.As(err, &op) && op.Op == "dial" || noTLS(err)
}

// unproved reports whether somebody has answered who is not shown to be the member that was
// asked: it may have done what was asked, or nothing.
func unproved(err error) bool { return errors.As(err, new(*api.Unproved)) }

// unanswered is the error of a request that a member has not answered.
func (s *Shard) unanswered(what string, err error) error {
	switch {
	case unproved(err):
		return unknownf("%s: %w; see that its own agent runs there, and that its token may read the key %s", what, err, s.Keys.Secret())
	case neverSent(err):
		return fmt.Errorf("%s: %w", what, err)
	}
	return unknownf("%s: no answer: %w", what, err)
}

// noTLS reports whether a request has failed because one side did not accept the
// other's certificate, or does not speak TLS.
func noTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert *net.OpError // crypto/tls wraps an alert of the other side so
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &alert) && alert.Op == "remote error" ||
		err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") // net/http has no value for it
}

// inWords says what Go's words mean that may stand anywhere in an error's text.
func inWords(text string) string {
	return strings.NewReplacer(context.DeadlineExceeded.Error(), "not in time", context.Canceled.Error(), "interrupted").Replace(text)
}

// failedRequests are the HTTP requests without an answer in a tree of errors.
func failedRequests(err error) []*url.Error {
	if u, is := err.(*url.Error); is { //nolint:errorlint // the tree is walked here
		return []*url.Error{u}
	}
	switch e := err.(type) { //nolint:errorlint // the same
	case interface{ Unwrap() error }:
		return failedRequests(e.Unwrap())
	case interface{ Unwrap() []error }:
		var all []*url.Error
		for _, one := range e.Unwrap() {
			all = append(all, failedRequests(one)...)
		}
		return all
	}
	return nil
}

// why is the cause of a request's failure, without what was said around it.
func why(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &op):
		return strings.TrimPrefix(op.Err.Error(), "connect: ")
	}
	return err.Error()
}
