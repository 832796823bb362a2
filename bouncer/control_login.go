package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// errLoginWanted says that a bouncer does nothing without user name and password.
var errLoginWanted = errors.New("it wants user name and password, those of authentication in bouncer.yml")

// post has the bouncer do something. Without TLS anybody on this host may have its port
// while it is down: the password is shown only when it is asked for, by somebody who knows it.
func (o own) post(ctx context.Context, path string, into any) error {
	if o.config.Authentication.Username == "" || o.config.CertFile != "" {
		return request(ctx, o.client, http.MethodPost, o.url+path, o.config.Authentication, into)
	}
	u, err := url.Parse(o.url)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	dialing, cancel := context.WithTimeout(ctx, overviewBound)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(dialing, "tcp", u.Host)
	if err != nil {
		return fmt.Errorf("bouncer at %s: %w", o.url, err)
	}
	defer conn.Close()
	client := onlyOn(conn)
	defer client.CloseIdleConnections()
	err = request(ctx, client, http.MethodPost, o.url+path, config.Credentials{}, into)
	if !errors.Is(err, errLoginWanted) {
		return err
	}
	if err := mayHear(o.config, conn); err != nil {
		return fmt.Errorf("bouncer at %s: the password is not sent without TLS: %w; set certfile in bouncer.yml, or see who listens there, and run this on the bouncer's own host as root or as its user", o.url, err)
	}
	return request(ctx, client, http.MethodPost, o.url+path, o.config.Authentication, into)
}

// onlyOn makes a client whose requests all go over one connection.
func onlyOn(conn net.Conn) *http.Client {
	free := make(chan net.Conn, 1)
	free <- conn
	return &http.Client{
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-free:
				return conn, nil
			default:
				return nil, errors.New("it has closed the connection")
			}
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// mayHear returns nil when the process that answers on a connection is root's, this
// process's own user's, or of a user that can read the password itself.
func mayHear(c config.Config, conn net.Conn) error {
	uid, err := httpserver.UserOf(conn)
	if err != nil {
		return err
	}
	if uid == 0 || int(uid) == os.Geteuid() || c.PasswordIsKnownTo(uid) {
		return nil
	}
	return fmt.Errorf("the user with the number %d answers there, who cannot read it in the configuration", uid)
}
