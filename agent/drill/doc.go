// Package drill has what a game day needs beside the shards themselves: a client that
// notices what clients notice, the commands by which an operator's host is lost and comes
// back, and the page that tells how it went.
//
//	probe.go    one client through the load balancer: an attempt, then the next
//	record.go   what it has seen: waits, errors, acknowledged rows
//	command.go  commands of the operator's, run without a shell
//	report.go   what a drill came to
//	page.go     the report as one HTML page
//
// It knows neither Consul nor members: agent/operator does, and carries a drill out.
package drill
