package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// What is wrong with one shard keeps no other from being served; itself it has what PgBouncer's
// file has of it, and no name that may be another's.
func TestRefusedShards(t *testing.T) {
	const installed = `[databases]
orders = host=10.0.0.1 port=5432 dbname=orders pool_size=40 reserve_pool=3
orders_ro = host=10.0.0.2 port=5432 dbname=orders pool_size=7
orders_old = host=10.0.0.1 port=5432 dbname=archive
orders_old_ro = host=10.0.0.2 port=5432 dbname=archive
users = host=10.0.0.9 port=5432 dbname=users
users_ro = host=10.0.0.9 port=5432 dbname=users
[pgbouncer]
`
	asInstalled := map[string]string{
		"orders": " pool_size=40 reserve_pool_size=3", "orders_ro": " pool_size=7", "orders_old": "", "orders_old_ro": "",
	}
	for name, c := range map[string]struct {
		old, new string
		// without: PgBouncer has no file.
		without bool
		// orders and users are the databases that follow a route, with their options; nil: none.
		orders, users map[string]string
		unfollowed    []string
		refused       []string // the beginning of each error
	}{
		"option": {
			old: "pool_size: 50", new: "options: {max_db_conections: 3}", orders: asInstalled,
			refused: []string{"service/orders: shard service/orders is served with the options that FILE has of it, as bouncer.yml is wrong: shards[0].options.max_db_conections: PgBouncer's"},
		},
		"type, unknown key": {
			old: "pool_size: 50", new: "pool_size: abc\n    poolsize: 3", orders: asInstalled,
			refused: []string{"service/orders: shard service/orders is served with the options that FILE has of it, as bouncer.yml is wrong: shards[0].pool_size: \"abc\": must be a whole number (bouncer.yml, line "},
		},
		"no file": {
			old: "pool_size: 50", new: "pool_size: -1", without: true,
			unfollowed: []string{"orders", "orders_old", "orders_old_ro", "orders_ro"},
			refused:    []string{"service/orders: shard service/orders is not offered, and what PgBouncer has of it stays as it is: shards[0].pool_size: -1"},
		},
		"name of a database": {
			old: `"orders_old=archive"`, new: `"="`,
			orders:     map[string]string{"orders": asInstalled["orders"], "orders_ro": asInstalled["orders_ro"]},
			unfollowed: []string{"orders_old", "orders_old_ro"},
			refused:    []string{"service/orders: shard service/orders is served with"},
		},
		"readers": {
			old: "pool_size: 50", new: "readers: replicas", orders: asInstalled,
			refused: []string{"service/orders: shard service/orders is served with"},
		},
		"whose keys are followed": {
			old: "pool_size: 50", new: "patroni: perhaps",
			unfollowed: []string{"orders", "orders_old", "orders_old_ro", "orders_ro"},
			refused:    []string{"service/orders: shard service/orders is not offered, and"},
		},
		"scope": {
			old: "scope: orders", new: "scope: --x",
			unfollowed: []string{"orders", "orders_old", "orders_old_ro", "orders_ro"},
			refused:    []string{`shards[0]: shard shards[0] is not offered, and what PgBouncer has of it stays as it is: shards[0].scope: "--x"`},
		},
		"no map": {
			old: "- scope: users\n    namespace: db", new: "- users", unfollowed: []string{"users", "users_ro"},
			refused: []string{"shards[1]: shard shards[1] is not offered"},
		},
		"shard twice": {
			old: "scope: users\n    namespace: db", new: "scope: orders\n    databases: [users]",
			unfollowed: []string{"users", "users_ro"},
			refused:    []string{"shards[1]: shard shards[1] is not offered"},
		},
		// Which of the two has it the file does not tell: it stays with whom PgBouncer leads to.
		"one database of two": {
			old: `"orders_old=archive"`, new: "users",
			orders:     map[string]string{"orders": asInstalled["orders"], "orders_ro": asInstalled["orders_ro"]},
			unfollowed: []string{"orders_old", "orders_old_ro", "users", "users_ro"},
			refused: []string{
				`service/orders: shard service/orders is served with the options that FILE has of it, as bouncer.yml is wrong: shards[0].databases: "users": is PgBouncer's database of another shard, too`,
				`db/users: shard db/users is not offered, and what PgBouncer has of it stays as it is: shards[1].databases[0]: "users": PgBouncer's database "users" already belongs to shards[0]`,
			},
		},
		"a reader's name of two": {
			old: `"orders_old=archive"`, new: "users_ro",
			orders:     map[string]string{"orders": asInstalled["orders"], "orders_ro": asInstalled["orders_ro"]},
			users:      map[string]string{"users": ""},
			unfollowed: []string{"orders_old", "orders_old_ro", "users_ro", "users_ro_ro"},
			refused:    []string{"service/orders: ", "db/users: shard db/users is served with"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pgbouncer.ini")
			text := strings.Replace(strings.Replace(fullConfig, "/etc/pgbouncer/pgbouncer.ini", file, 1), c.old, c.new, 1)
			if !c.without {
				if err := os.WriteFile(file, []byte(installed), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(t.TempDir(), "bouncer.yml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Load(settings.Source{Path: path}); err == nil {
				t.Error("Load takes it")
			}
			got, _, err := LoadServable(settings.Source{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range got.Refused() {
				said := strings.ReplaceAll(r.Name+": "+r.Err.Error(), file, "FILE")
				if i >= len(c.refused) || !strings.HasPrefix(said, c.refused[i]) {
					t.Errorf("refused is %q", said)
				}
			}
			if len(got.Refused()) != len(c.refused) || got.ServesAll() {
				t.Errorf("refused are %v, all %v", got.Refused(), got.ServesAll())
			}
			if !slices.Equal(got.Unfollowed(), c.unfollowed) {
				t.Errorf("unfollowed are %q", got.Unfollowed())
			}
			want := map[ShardID]map[string]string{}
			if c.orders != nil {
				want["service/orders"] = c.orders
			}
			if c.users != nil {
				want["db/users"] = c.users
			}
			served := map[ShardID]bool{}
			for _, s := range got.Shards {
				served[s.ID()] = true
				if want[s.ID()] == nil { // as it stands in bouncer.yml
					if got.RefusedShard(s.ID()) != nil {
						t.Errorf("%s is refused: %v", s.ID(), got.RefusedShard(s.ID()))
					}
					continue
				}
				options := map[string]string{}
				for _, name := range got.Names(s) {
					options[name] = pgbouncer.FormatOptions(got.DatabaseOptions(s, name, pgbouncer.Version{1, 26}))
				}
				if fmt.Sprint(options) != fmt.Sprint(want[s.ID()]) || got.RefusedShard(s.ID()) == nil {
					t.Errorf("%s has %v", s.ID(), options)
				}
			}
			if len(served)+len(got.Refused())-len(want) != 2 {
				t.Errorf("served are %v", served)
			}
		})
	}
}

// What is not a single shard's own is an error for both.
func TestRefusedAsAWhole(t *testing.T) {
	for name, c := range map[string]struct{ old, new string }{
		"setting":         {"max_client_conn: 5000", "max_client_conn: abc"},
		"beside a shard":  {"hold_timeout: 20", "hold_timeout: 4000\nreaders: none"},
		"shards no list":  {"shards:", "shards: 5\nother:"},
		"readers of all":  {"hold_timeout: 20", "readers: none"},
		"no YAML":         {"shards:", "shards: ["},
		"unknown section": {"shards:", "shard:"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bouncer.yml")
			text := strings.Replace(strings.Replace(fullConfig, "pool_size: 50", "pool_size: -1", 1), c.old, c.new, 1)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, _, err := LoadServable(settings.Source{Path: path}); err == nil || len(got.Shards) > 0 {
				t.Errorf("%v %+v", err, got.Shards)
			}
		})
	}
}
