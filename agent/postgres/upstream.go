package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// upstreams is what is asked of the PostgreSQL of other members.
type upstreams struct {
	*installation
	*walDir
	login *credentials
}

// Answers says why the PostgreSQL of an upstream does not answer, as a primary where that is asked
// for. systemIdentifier is the shard's, if it is known: at an address that was given away, another
// cluster may answer to the same passwords. Data are removed by the answer, so it has to prove whose it is.
func (p *upstreams) Answers(ctx context.Context, u Upstream, primary bool, systemIdentifier string) error {
	conn, err := p.connect(ctx, u.Host, u.Port, proving(u.Host, p.local.Load().Authentication.Superuser), p.database(), agentName)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	var recovering bool
	var found string
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system())").Scan(&recovering, &found); err != nil {
		return fmt.Errorf("asking %s who it is: %w", u.Name, err)
	}
	if systemIdentifier != "" && found != systemIdentifier {
		p.log.Error().Str("upstream", u.Name).Str("system_identifier", found).Str("wanted", systemIdentifier).Msg("another cluster answers at this member's address")
		return otherCluster(u, found, systemIdentifier)
	}
	if primary && recovering {
		return fmt.Errorf("%s is no primary", u.Name)
	}
	return nil
}

// CheckRemote says why a remote primary cannot be followed: it does not answer, is no
// primary, or is of another cluster than the data directory; or that this has WAL which is
// none of its. Where its archive alone is known, nothing can be said. stops: a primary is stopped by the answer, so it
// has to prove whose it is.
func (p *rewinder) CheckRemote(ctx context.Context, u Upstream, stops bool) (strayed bool, err error) {
	if u.Host == "" {
		return false, nil
	}
	if u, err = p.primaryAmong(ctx, u, stops); err != nil {
		return false, err
	}
	control, err := p.control(ctx)
	if err != nil {
		return false, err
	}
	return p.diverged(ctx, u, control)
}

// primaryAmong is the one of a remote shard's hosts that is its primary. It is asked by the
// user that replicates: another site's superuser may be another one. proved: it has to prove whose it is.
func (p *upstreams) primaryAmong(ctx context.Context, u Upstream, proved bool) (Upstream, error) {
	a := p.local.Load().Authentication
	if !u.Remote || u.Host == "" {
		return u, nil
	}
	var errs []error
	for host := range strings.SplitSeq(u.Host, ",") {
		one := u
		one.Host = host
		replication, superuser := a.Replication, a.Superuser
		if proved {
			replication, superuser = proving(host, replication), proving(host, superuser)
		}
		conn, err := p.replicationConnAs(ctx, one, replication, agentName)
		if err == nil {
			var primary bool
			primary, err = p.isPrimary(ctx, conn, one, superuser)
			hangUpOn(conn)
			if err == nil && primary {
				return one, nil
			}
		}
		if err == nil {
			err = fmt.Errorf("%s is no primary", net.JoinHostPort(host, strconv.Itoa(u.Port)))
		}
		errs = append(errs, err)
	}
	return u, fmt.Errorf("the %s cannot be followed: %w", u.Name, errors.Join(errs...))
}

// replicationConn opens a replication connection to an upstream.
func (p *upstreams) replicationConn(ctx context.Context, u Upstream) (*pgconn.PgConn, error) {
	return p.replicationConnAs(ctx, u, p.local.Load().Authentication.Replication, agentName)
}

// replicationConnAs opens one as a role, with a name of its own.
func (p *upstreams) replicationConnAs(ctx context.Context, u Upstream, role config.PgUser, applicationName string) (*pgconn.PgConn, error) {
	role.SSLMode = cmp.Or(role.SSLMode, "prefer")
	c, err := LoginConfig(u.Host, u.Port, role, replicationDatabase)
	if err != nil {
		return nil, fmt.Errorf("replication connection to %s: %w", u.Name, err)
	}
	c.Database = ""
	c.RuntimeParams = map[string]string{"replication": "true", "application_name": applicationName}
	c.ConnectTimeout, c.MaxProtocolMessageBodyLen = 3*time.Second, maxMessage
	conn, err := pgauth.Connect(&c.Config, func() (*pgconn.PgConn, error) { return pgconn.ConnectConfig(ctx, &c.Config) })
	if err != nil {
		return nil, fmt.Errorf("replication connection to %s as %s: %w", u.Name, role.Username, explained(err))
	}
	return conn, nil
}

// PositionOf asks a primary how far its WAL goes. A member counts again by the answer, so it has to prove whose it is
// where it can. Where nobody can, no member that was rewound would ever count again.
func (p *upstreams) PositionOf(ctx context.Context, u Upstream) (timeline int, lsn int64, err error) {
	a := p.local.Load().Authentication
	replication, _ := p.login.provesWhereItCan(u.Host, forReplication, a.Replication)
	superuser, _ := p.login.provesWhereItCan(u.Host, forSQL, a.Superuser)
	conn, err := p.replicationConnAs(ctx, u, replication, agentName)
	if err != nil {
		return 0, 0, err
	}
	defer hangUpOn(conn)
	primary, err := p.isPrimary(ctx, conn, u, superuser)
	if err != nil {
		return 0, 0, fmt.Errorf("asking %s whether it is a primary: %w", u.Name, err)
	}
	if !primary {
		return 0, 0, fmt.Errorf("%s is no primary", u.Name)
	}
	_, timeline, lsn, err = identifySystem(ctx, conn)
	return timeline, lsn, err
}

// isPrimary asks an upstream whether it is one. A replication connection can be
// asked for in_hot_standby, which PostgreSQL before 14 does not have: there the superuser asks.
func (p *upstreams) isPrimary(ctx context.Context, conn *pgconn.PgConn, u Upstream, superuser config.PgUser) (bool, error) {
	if p.major >= 14 {
		row, err := queryRow(ctx, conn, "SHOW in_hot_standby")
		if err != nil {
			return false, err
		}
		return len(row) > 0 && string(row[0]) == "off", nil
	}
	sql, err := p.connect(ctx, u.Host, u.Port, superuser, p.database(), agentName)
	if err != nil {
		return false, err
	}
	defer hangUpOn(sql)
	var primary bool
	err = sql.QueryRow(ctx, "SELECT NOT pg_is_in_recovery()").Scan(&primary)
	return primary, err
}

// identify asks an upstream for its system identifier.
func (p *upstreams) identify(ctx context.Context, u Upstream) (string, error) {
	conn, err := p.replicationConn(ctx, u)
	if err != nil {
		return "", err
	}
	defer hangUpOn(conn)
	id, _, _, err := identifySystem(ctx, conn)
	return id, err
}

func identifySystem(ctx context.Context, conn *pgconn.PgConn) (id string, timeline int, position int64, err error) {
	row, err := queryRow(ctx, conn, "IDENTIFY_SYSTEM")
	if err != nil {
		return "", 0, 0, fmt.Errorf("IDENTIFY_SYSTEM: %w", err)
	}
	if len(row) < 3 {
		return "", 0, 0, errors.New("IDENTIFY_SYSTEM: the answer has less than three columns")
	}
	if timeline, err = strconv.Atoi(string(row[1])); err != nil {
		return "", 0, 0, fmt.Errorf("IDENTIFY_SYSTEM: timeline %q", row[1])
	}
	if position, err = pg.ParseLSN(string(row[2])); err != nil {
		return "", 0, 0, fmt.Errorf("IDENTIFY_SYSTEM: %w", err)
	}
	return string(row[0]), timeline, position, nil
}

func queryRow(ctx context.Context, conn *pgconn.PgConn, command string) ([][]byte, error) {
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 || len(results[0].Rows) == 0 {
		return nil, errors.New("no answer")
	}
	return results[0].Rows[0], nil
}
