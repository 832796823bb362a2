// Package consul is how a bouncer asks Consul: at one of several addresses, each of which
// may be silent. It knows no key.
//
//	pool.go     the addresses, of which one is in use; requests that turn to the next
//	blocking.go one blocking query after the other
//	limit.go    answers that may not be longer than so much
//	each.go     lists whose pairs are handed on while the answer comes
package consul
