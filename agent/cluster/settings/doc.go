// Package settings reads configuration files strictly. Agent and bouncer share
// it, each with a struct of its own:
//
//	load.go    where a configuration comes from, and the whole way from there to a struct
//	tree.go    YAML files -> one tree that knows where each value stands
//	layers.go  environment variables over the files, flags over both (viper)
//	schema.go  what else a program takes: old names, unused and refused keys
//	decode.go  tree -> struct; unknown keys and wrong types, all at once
//	secret.go, secret_values.go  what must never be shown, and where it hides in other text
//	consul.go, consul_client.go, consul_session.go  the section `consul`, which both have
//
// Every problem names the setting, the value, the rule and the place it comes
// from. Names that belong to the user (tags, parameters, users) keep their case
// and their dots: viper, which folds both, only sees the names of settings.
package settings
