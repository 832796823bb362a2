// Package web is the fleet page: all shards, read only, for people with a browser.
//
//	web.go     the page and its server: who may read, headers, the page's files, one shard, runbooks
//	config.go  its settings
//	stream.go  what browsers are told, each thing made once for all of them
//	page/      the page itself: plain files, in the program
//
// What is shown is made by agent/operator, as the commands show it. The page makes text of it and
// never markup: whatever a member or a bouncer writes into Consul stays text.
package web
