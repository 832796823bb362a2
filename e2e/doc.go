// Package e2e tests whole shards: real agents, PostgreSQL and Consul on the hosts of a lab
// (package lab), under clients, while something is taken away from them.
//
// The folders beside it:
//
//	lab, netns      build what is tested, and enter its network namespaces
//	bouncer, cli, web, clients, backup, ansible, vm
//	                tests of one part each
//	faults          the failure lab (`make lab`)
//	demo            `make demo`
//	bench           the figures (`make bench`)
//	docs            keeps the pages under docs/ true, and makes some of them
//	mutants         which test notices when a rule is missing (`make mutants`)
//	tools           pins Consul, the linters and what packages are built with
package e2e
