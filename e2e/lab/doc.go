// Package lab builds a whole Lictor installation out of real processes: Consul
// servers, database hosts, pooler hosts and a load balancer. The demo, the
// end-to-end tests and the benchmark share it.
//
// A lab stands on one of two substrates. On Loopback every host is a set of
// ports of 127.0.0.1; it needs no privileges. On Netns every host is a network
// namespace on a bridge that itself lies in a namespace, so that a host can be
// cut off, in one direction too, or lose its power without a last word on the
// network; that needs root.
//
// What runs on the hosts is behind two small interfaces, DatabaseSoftware and
// PoolerSoftware, so that another product can be measured in the same lab.
//
// Everything that a lab started is killed when it is closed, PostgreSQL's
// orphans included. A lab whose own process was killed leaves a record in its
// directory; Clean, or the next lab in that directory, kills what is left of it
// and nothing else.
package lab
