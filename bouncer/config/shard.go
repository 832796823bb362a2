package config

import (
	"cmp"
	"fmt"
	"strings"
)

// ShardID names a shard: NAMESPACE/SCOPE.
type ShardID string

// Split returns the shard's namespace and scope.
func (id ShardID) Split() (namespace, scope string) {
	i := strings.LastIndexByte(string(id), '/')
	return string(id[:max(i, 0)]), string(id[i+1:])
}

func (s Shard) ID() ShardID { return ShardID(s.Namespace + "/" + s.Scope) }

// Shard is one shard and how PgBouncer offers it.
type Shard struct {
	// Scope is the shard's name.
	Scope string `mapstructure:"scope"`
	// Namespace is the first part of its keys in Consul. Default: service.
	Namespace string `mapstructure:"namespace"`
	// Databases are names in PgBouncer, each as name or, when PostgreSQL knows the database by another
	// one, as name=dbname; each has a second one with _ro at its end for readers. Default: the scope.
	Databases []string `mapstructure:"databases"`
	// PoolSize is PgBouncer's pool_size for these databases (connections). Default: PgBouncer's
	// default_pool_size.
	PoolSize int `mapstructure:"pool_size"`
	// PoolMode is PgBouncer's pool_mode for them. Default: PgBouncer's, transaction unless settings
	// say otherwise.
	PoolMode string `mapstructure:"pool_mode"`
	// Options are further ones of PgBouncer's section [databases] for them, over
	// pgbouncer.database_options: {reserve_pool_size: 5, application_name: orders}.
	Options map[string]any `mapstructure:"options"`
	// DatabaseOptions are those of single ones of them, by the name in PgBouncer, over options:
	// {orders_ro: {pool_size: 10}}.
	DatabaseOptions map[string]map[string]any `mapstructure:"database_options"`
	// Readers says where clients of the databases with _ro at their end go: primary-fallback, to the
	// replicas, and to the primary while none takes readers; strict, to replicas only, and the
	// databases are not offered while none takes readers (not beside pgbouncer.fallback); off, there
	// are no such databases. Default: readers above.
	Readers string `mapstructure:"readers"`
	// Patroni makes the bouncer follow Patroni's own keys also where there is a route; without it they
	// are followed as long as there is none.
	Patroni bool `mapstructure:"patroni"`
	// MaxReplicaLag is how many bytes of WAL a replica may be behind and still take readers, where
	// Patroni runs the shard; one that was further behind takes them again within half of it. Lictor's
	// leaders decide it by their own configuration. Default: 16 MiB.
	MaxReplicaLag int64 `mapstructure:"max_replica_lag"`

	// place is which of shards it is.
	place int
}

// Database is one database of a shard as PgBouncer offers it.
type Database struct {
	// Name is what clients ask PgBouncer for.
	Name string
	// DBName is what PostgreSQL calls it.
	DBName string
}

// ReadOnlyName is the database by which clients reach the replicas.
func (d Database) ReadOnlyName() string { return d.Name + "_ro" }

// maxDatabaseName is PgBouncer's limit of 63 bytes, less what the readers' name
// adds: a longer name makes PgBouncer refuse its whole file.
const maxDatabaseName = 60

// Where readers go, as bouncer.yml has it.
const (
	ReadersOff             = "off"
	ReadersPrimaryFallback = "primary-fallback"
	ReadersStrict          = "strict"
)

func checkReaders(mode string) error {
	switch mode {
	case "", ReadersOff, ReadersPrimaryFallback, ReadersStrict:
		return nil
	}
	return fmt.Errorf("must be one of %s, %s, %s", ReadersOff, ReadersPrimaryFallback, ReadersStrict)
}

// ReadersOf is the mode of a shard's readers.
func (c Config) ReadersOf(s Shard) string {
	return cmp.Or(s.Readers, c.Readers, ReadersPrimaryFallback)
}

// Names are all names that PgBouncer may have of a database, by the mode of its readers.
func (d Database) Names(readers string) []string {
	if readers == ReadersOff {
		return []string{d.Name}
	}
	return []string{d.Name, d.ReadOnlyName()}
}

func parseDatabase(s string) (Database, error) {
	name, dbname, found := strings.Cut(s, "=")
	if !found {
		dbname = name
	}
	d := Database{Name: name, DBName: dbname}
	return d, d.Validate()
}

func (d Database) Validate() error {
	switch {
	case d.Name == "" || d.DBName == "" || d.Name == "pgbouncer" || d.Name == "*" || !isText(d.Name) || !isText(d.DBName):
		return fmt.Errorf("%q must be the name of a database, or name=dbname", d.Name)
	case len(d.Name) > maxDatabaseName:
		return fmt.Errorf("%q must not be longer than %d bytes", d.Name, maxDatabaseName)
	}
	return nil
}

func (s Shard) ParseDatabases() (list []Database, err error) {
	for _, entry := range s.Databases {
		d, err := parseDatabase(entry)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", s.ID(), err)
		}
		list = append(list, d)
	}
	return list, nil
}
