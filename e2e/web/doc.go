// Package web opens the fleet page, as browsers do, on fleets in a real Consul: its figures with a
// thousand shards, and the page itself in a real Chromium (`make browser` installs one). The report of
// a drill is looked at there, too.
package web
