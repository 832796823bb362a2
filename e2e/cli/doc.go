// Package cli runs the operator's commands, as processes, against one real shard.
package cli
