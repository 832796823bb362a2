// Package adoption looks at a PostgreSQL that no agent runs yet, and says with which
// file an agent would take charge of it, and what stands in the way. It changes nothing.
//
//	found.go     what is found, by SQL alone
//	config.go    the agent's file that goes with it
//	findings.go  what does not fit, and what will be otherwise
package adoption
