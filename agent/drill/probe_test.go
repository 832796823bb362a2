package drill

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// fakeServer speaks PostgreSQL's protocol as far as a probe needs it, and does what a test says.
type fakeServer struct {
	mu       sync.Mutex
	table    bool
	rows     []string // ids, of any run
	sessions int
	dropped  map[string]bool // ids that are acknowledged and lost
	silent   map[string]bool // ids whose inserts are never answered
	fails    map[string]bool // ids whose sessions are cut
	denied   string          // code of the error for each insert and CREATE TABLE
	standby  string          // "t" or "f"
	seen     []string
}

// answer is what the server says to a statement: columns (name, type) with rows, a tag, or a code.
type answer struct {
	column string
	oid    uint32
	rows   []string
	tag    string
	code   string
	cut    bool // the session
	silent bool
}

func (s *fakeServer) do(sql string, args [][]byte) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, sql)
	const boolean, text, bigint = 16, 25, 20
	id := ""
	if len(args) > 1 {
		id = string(args[1])
	}
	switch {
	case strings.Contains(sql, "pg_is_in_recovery"):
		return answer{column: "r", oid: boolean, rows: []string{s.standby}, tag: "SELECT 1"}
	case strings.Contains(sql, "pg_control_system"):
		return answer{column: "s", oid: text, rows: []string{"77"}, tag: "SELECT 1"}
	case strings.HasPrefix(sql, "CREATE TABLE") && s.denied != "":
		return answer{code: s.denied}
	case strings.HasPrefix(sql, "CREATE TABLE"):
		s.table = true
		return answer{tag: "CREATE TABLE"}
	case !s.table:
		return answer{code: undefinedTable}
	case strings.HasPrefix(sql, "INSERT") && s.denied != "":
		return answer{code: s.denied}
	case strings.HasPrefix(sql, "INSERT") && s.fails[id]:
		return answer{cut: true}
	case strings.HasPrefix(sql, "INSERT") && s.silent[id]:
		return answer{silent: true}
	case strings.HasPrefix(sql, "INSERT"):
		if !s.dropped[id] {
			s.rows = append(s.rows, id)
		}
		return answer{tag: "INSERT 0 1"}
	case strings.HasPrefix(sql, "SELECT id"):
		return answer{column: "id", oid: bigint, rows: slices.Clone(s.rows), tag: fmt.Sprintf("SELECT %d", len(s.rows))}
	case strings.HasPrefix(sql, "DELETE"):
		n := len(s.rows)
		s.rows = nil
		return answer{tag: fmt.Sprintf("DELETE %d", n)}
	}
	return answer{code: "42601"}
}

// serve serves one session.
func (s *fakeServer) serve(conn net.Conn) {
	defer conn.Close()
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	s.mu.Lock()
	s.sessions++
	s.mu.Unlock()
	ready := func() { b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'}) }
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	b.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	ready()
	sql, args := "", [][]byte(nil)
	failed := false
	for {
		if b.Flush() != nil {
			return
		}
		message, err := b.Receive()
		if err != nil {
			return
		}
		switch m := message.(type) {
		case *pgproto3.Parse:
			sql = m.Query
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Bind:
			args = nil
			for i, p := range m.Parameters {
				value := slices.Clone(p)
				if len(m.ParameterFormatCodes) > 0 && m.ParameterFormatCodes[min(i, len(m.ParameterFormatCodes)-1)] == 1 && len(p) == 8 {
					n := int64(0)
					for _, one := range p {
						n = n<<8 | int64(one)
					}
					value = fmt.Append(nil, n)
				}
				args = append(args, value)
			}
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Describe: // what it describes is done here: the answer is known then
			a := s.do(sql, args)
			switch {
			case a.cut:
				return
			case a.silent:
				_, _ = conn.Read(make([]byte, 1)) // until the client goes
				return
			case a.code != "":
				b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: a.code, Message: "no\x1b[2J"})
				failed = true
				continue
			case a.column == "":
				b.Send(&pgproto3.NoData{})
			default:
				b.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte(a.column), DataTypeOID: a.oid, DataTypeSize: -1, TypeModifier: -1}}})
			}
			for _, row := range a.rows {
				b.Send(&pgproto3.DataRow{Values: [][]byte{[]byte(row)}})
			}
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte(a.tag)})
		case *pgproto3.Query: // one without parameters, and without rows
			if a := s.do(m.String, nil); a.code != "" {
				b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: a.code, Message: "no\x1b[2J"})
			} else {
				b.Send(&pgproto3.CommandComplete{CommandTag: []byte(a.tag)})
			}
			ready()
		case *pgproto3.Execute:
		case *pgproto3.Sync:
			failed = false
			ready()
		case *pgproto3.Terminate:
			return
		default:
			if !failed {
				return
			}
		}
	}
}

// serving starts a server and returns how to reach it.
func serving(t *testing.T, s *fakeServer) Options {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sessions sync.WaitGroup
	sessions.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		sessions.Wait()
	})
	host, port, _ := net.SplitHostPort(listener.Addr().String())
	return Options{Connection: fmt.Sprintf("host=%s port=%s user=u sslmode=disable", host, port), Limit: 500 * time.Millisecond}
}

func probed(t *testing.T, s *fakeServer, answers int64) Result {
	t.Helper()
	p, err := Start(t.Context(), serving(t, s), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if p.System() != "77" {
		t.Errorf("system identifier %q", p.System())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Answers(ctx, answers); err != nil {
		t.Error(err)
	}
	return p.Stop(t.Context())
}

// A client that writes makes its table, goes on after errors on a new connection, and takes its rows
// away.
func TestProbeWrites(t *testing.T) {
	s := &fakeServer{standby: "f", fails: map[string]bool{"2": true}, silent: map[string]bool{"4": true}}
	r := probed(t, s, 6)
	if r.Mode != Writes || r.Acked < 6 || r.Errors != 2 || r.Lost != 0 || r.Unchecked != "" || r.Left != "" || r.Run == "" || len(s.rows) != 0 {
		t.Errorf("%+v, %d rows are left", r, len(s.rows))
	}
	if len(r.Failures) == 2 && r.Failures[1].Text != "no answer in time" {
		t.Errorf("the one that was not answered: %+v", r.Failures[1])
	}
	if r.Gap() < 500*time.Millisecond {
		t.Errorf("it waited %s for the one that was not answered", r.Gap())
	}
	if s.sessions < 3 {
		t.Errorf("%d sessions", s.sessions)
	}
}

// A row that was acknowledged and is not there is lost, and the others stay where they are.
func TestProbeFindsLostRows(t *testing.T) {
	s := &fakeServer{standby: "f", table: true, dropped: map[string]bool{"3": true}}
	r := probed(t, s, 5)
	if r.Lost != 1 || !slices.Equal(r.LostIDs, []int64{3}) || r.Left != "rows are missing" || len(s.rows) == 0 {
		t.Errorf("%+v, %d rows are left", r, len(s.rows))
	}
}

// Without rights it reads, and says why.
func TestProbeReads(t *testing.T) {
	for _, s := range []*fakeServer{
		{standby: "f", denied: insufficientPrivilege},
		{standby: "f", denied: insufficientPrivilege, table: true},
		{standby: "f", denied: noSchema},
		{standby: "f", denied: readOnly, table: true},
	} {
		r := probed(t, s, 3)
		if r.Mode != Reads || !strings.Contains(r.Why, "it may not write") || strings.Contains(r.Why, "\x1b") || r.Errors != 0 || r.Run != "" {
			t.Errorf("%+v", r)
		}
		if slices.ContainsFunc(s.seen, func(sql string) bool { return strings.HasPrefix(sql, "DELETE") }) {
			t.Error("it deletes rows that it has not written")
		}
	}
}

func TestProbeCannotStart(t *testing.T) {
	for name, s := range map[string]*fakeServer{"led to a standby": {standby: "t"}, "ERROR: no": {standby: "f", denied: "53100"}} {
		if p, err := Start(t.Context(), serving(t, s), "orders"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, %v; want %q", p, err, name)
		}
	}
	o := Options{Connection: "host=127.0.0.1 port=1 user=u sslmode=disable", Limit: time.Second}
	if _, err := Start(t.Context(), o, "orders"); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("nobody there: %v", err)
	}
}
