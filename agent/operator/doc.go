// Package operator is what stands behind the operator's commands: it reads
// shards from Consul, asks members over their REST API, and shows the answers.
//
//	settings.go    where Consul is and which shard is meant: files, environment, flags
//	shard.go       one shard: its keys, its members' REST API
//	failure.go     how a command can end, and the exit code of each way
//	explain.go     what a command says of the error that it ends with
//	status.go      what members answer to GET /patroni
//	table.go, table_fit.go
//	               tables for people, JSON, YAML and TSV for programs
//	console.go     terminal, colours, prompts, --watch
//	list.go        list and topology
//	history.go     history and events
//	fleet.go, fleet_alarms.go
//	               all shards at once, and what is wrong with them
//	fleet_watch.go, fleet_list.go, fleet_view.go
//	               the same again and again for who looks on, as a page shows it
//	config.go      show-config and edit-config
//	switchover.go  switchover and failover
//	sites.go       a shard at two sites: demote-cluster, promote-cluster
//	placing.go     who could lead which shard where, and why not
//	moves.go       many switchovers, some at a time, until one does not go well
//	moved.go       what was handed over, as it is noted in Consul
//	evacuate.go, rebalance.go
//	               all leaders away from a host; leaders spread over hosts and zones
//	drill.go, drill_shard.go, drill_report.go
//	               drill: what is promised tried on the real fleet, until a surprise
//	override.go    failover --force when nobody leads
//	restart.go     restart, of members and of a whole shard
//	repack.go, repack_tables.go
//	               tables made anew with pg_repack, and what stops that
//	windows.go     whether a kind of maintenance may be done now
//	maintain.go    reload, reinit, pause, resume, flush, remove
//	restore.go, beside.go
//	               restore --as: the configuration of a shard beside the one that it was
//	upgrade.go     upgrade --check: whether each member could become another major version
//	secret.go      rotate-secret
//	query.go       query, dsn, version
//	doctor.go, doctor_consul.go, doctor_member.go, doctor_postgres.go, doctor_pgbouncer.go
//	               what is not as it should be, and what to do about it
//	doctor*.go     what is wrong or will be, and what to do
//
// Reading is one thing and judging another: what a command shows is made by pure
// functions from what was read, and tested as such. Nothing here decides for the
// shard; the agents do, and a command tells what they did.
package operator
