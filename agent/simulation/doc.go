// Package simulation runs members of a shard in virtual time: the code of
// agent/ha and the guard's rule of agent/fence as they are, around them models of
// everything else (docs/simulation.md).
//
//	schedule.go, generate.go  what happens: faults and operators' wishes, as a list
//	world.go                  virtual time, hosts, their clocks, the network
//	consul.go, requests.go    a model of Consul, and how requests reach it or do not
//	postgres.go, wal.go       a model of PostgreSQL, its WAL, and clients that commit
//	bootstrap.go              a shard that nobody has made yet
//	restore.go                a shard that is put back to an earlier moment
//	upgrade.go                a shard whose data become those of another major version
//	loss.go                   data that are removed or cloned
//	rewind.go                 data that are rewound, or not, or half
//	disk.go                   the disk under them, which hangs or is full
//	slots.go                  WAL that is not kept for ever
//	logical.go                a logical slot, its copies and its reader
//	remote.go                 a shard that is the standby of another one
//	sites.go                  two sites that take turns
//	takeover.go               a takeover by quorum
//	patroni.go                a member that runs Patroni
//	guard.go, watcher.go      the guard's process around fence.Deadline, and its parent
//	ports.go, ports_postgres.go
//	                          the world as the state machine (package member) reaches it
//	agent.go, listen.go       its process, and what listens there
//	faults.go, faults_consul.go, faults_postgres.go, byhand.go
//	                          how each event of a schedule is carried out
//	judge.go                  the invariants I1 to I8 (design 5.24)
//	mutant.go                 rules that can be switched off, to see that it is noticed
//	shrink.go                 from a long failing schedule to a short one
//
// One schedule runs in one goroutine, and depends on nothing but itself: the
// same schedule gives the same run, event for event.
package simulation
