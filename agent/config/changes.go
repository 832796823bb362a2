package config

import (
	"reflect"
	"slices"
)

// NeedsNewAgent names the settings in which another configuration differs from
// this one, and which a running agent does not take over: who it is, where it
// listens, and how it reaches others.
func (c Config) NeedsNewAgent(other Config) []string {
	var changed []string
	for name, pair := range map[string][2]any{
		"scope": {c.Scope, other.Scope}, "namespace": {c.Namespace, other.Namespace}, "name": {c.Name, other.Name},
		"restapi": {c.RestAPI, other.RestAPI}, "ctl": {c.Ctl, other.Ctl}, "consul": {c.Consul, other.Consul},
		"watchdog": {c.Watchdog, other.Watchdog}, "lictor": {c.Lictor, other.Lictor}, "log.format": {c.Log.Format, other.Log.Format},
		"log.dir": {c.Log.Dir, other.Log.Dir}, "log.file_size": {c.Log.FileSize, other.Log.FileSize}, "log.file_num": {c.Log.FileNum, other.Log.FileNum},
		"log.mode":                   {c.Log.Mode, other.Log.Mode},
		"postgresql.listen":          {c.Postgres.Listen, other.Postgres.Listen},
		"postgresql.connect_address": {c.Postgres.ConnectAddress, other.Postgres.ConnectAddress},
		"postgresql.proxy_address":   {c.Postgres.ProxyAddress, other.Postgres.ProxyAddress},
		"postgresql.data_dir":        {c.Postgres.DataDir, other.Postgres.DataDir},
		"postgresql.config_dir":      {c.Postgres.ConfigDir, other.Postgres.ConfigDir},
		"postgresql.bin_dir":         {c.Postgres.BinDir, other.Postgres.BinDir},
		"postgresql.bin_name":        {c.Postgres.BinName, other.Postgres.BinName},
		"postgresql.use_unix_socket": {c.Postgres.UseUnixSocket, other.Postgres.UseUnixSocket},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	return changed
}
