// Package routes is what a bouncer knows from Consul: where the primary of each shard is,
// and which switchovers are planned.
//
//	watch.go     Consul -> answers; decides nothing
//	follow.go    one blocking query after the other
//	hedged_watch.go  finds a Consul address that is silent
//	shared.go    reads that others cause, of which many cost no more than a few
//	table.go, table_patroni.go
//	             answers -> what is known of each shard; refuses what is wrong,
//	             forgets nothing by accident (pure)
//	pace.go      shards that change all the time are followed once a second
//	patroni.go   shards that Patroni runs
//	patroni_route.go
//	             Patroni's keys -> a route (pure)
//	handover.go  the planned switchovers (pure)
package routes
