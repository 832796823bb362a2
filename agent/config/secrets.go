package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// longestSecret bounds what is read from a file for a password, so that a wrong
// path cannot fill the memory.
const longestSecret = 4096

// secretFiles are the settings that name a file with a password, with the field
// that the password goes to.
func (c *Config) secretFiles() map[string][2]*string {
	auth := &c.Postgres.Authentication
	return map[string][2]*string{
		"restapi.authentication":                {&c.RestAPI.Authentication.PasswordFile, &c.RestAPI.Authentication.Password},
		"ctl.authentication":                    {&c.Ctl.Authentication.PasswordFile, &c.Ctl.Authentication.Password},
		"postgresql.authentication.superuser":   {&auth.Superuser.PasswordFile, &auth.Superuser.Password},
		"postgresql.authentication.replication": {&auth.Replication.PasswordFile, &auth.Replication.Password},
		"postgresql.authentication.rewind":      {&auth.Rewind.PasswordFile, &auth.Rewind.Password},
	}
}

// readSecrets takes passwords out of the files that password_file names: what a
// secret store's agent (Vault's, for instance), systemd or a container puts there.
// They are read anew with every reload.
func (c *Config) readSecrets() error {
	var errs []error
	for path, fields := range c.secretFiles() {
		file, password := *fields[0], fields[1]
		if file == "" {
			continue
		}
		if *password != "" {
			errs = append(errs, problem(path+".password_file", file, "must not be set together with "+path+".password"))
			continue
		}
		secret, err := readSecret(file)
		if err != nil {
			errs = append(errs, problem(path+".password_file", file, err.Error()))
			continue
		}
		*password = secret
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bootstrap.Users)) {
		user := c.Bootstrap.Users[name]
		if user.PasswordFile == "" {
			continue
		}
		path := "bootstrap.users." + name + ".password_file"
		if user.Password != "" {
			errs = append(errs, problem(path, user.PasswordFile, "must not be set together with the password"))
			continue
		}
		var err error
		if user.Password, err = readSecret(user.PasswordFile); err != nil {
			errs = append(errs, problem(path, user.PasswordFile, err.Error()))
			continue
		}
		c.Bootstrap.Users[name] = user
	}
	return errors.Join(errs...)
}

// readSecret reads the one line of a file, with the rights of whoever can put another in its
// place: PostgreSQL's user is given the password, and must not have root read it elsewhere.
func readSecret(path string) (string, error) {
	f, err := osuser.Keeper(path).Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, longestSecret+1))
	secret := strings.TrimRight(string(content), "\r\n")
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	case secret == "":
		return "", errors.New("is empty")
	case len(content) > longestSecret:
		return "", errors.New("is too long for a password")
	}
	return secret, nil
}

// exposed warns of files with secrets that every user of this host may read.
func (c Config) exposed() []Warning {
	files := map[string]string{
		"restapi.keyfile": c.RestAPI.KeyFile, "ctl.keyfile": c.Ctl.KeyFile,
		"consul.key": c.Consul.Key, "consul.token_file": c.Consul.TokenFile,
		"postgresql.authentication.superuser.sslkey":   c.Postgres.Authentication.Superuser.SSLKey,
		"postgresql.authentication.replication.sslkey": c.Postgres.Authentication.Replication.SSLKey,
		"postgresql.authentication.rewind.sslkey":      c.Postgres.Authentication.Rewind.SSLKey,
	}
	for path, fields := range c.secretFiles() {
		files[path+".password_file"] = *fields[0]
	}
	for name, user := range c.Bootstrap.Users {
		files["bootstrap.users."+name+".password_file"] = user.PasswordFile
	}
	var warnings []Warning
	for _, path := range slices.Sorted(maps.Keys(files)) {
		info, err := os.Stat(files[path])
		if files[path] != "" && err == nil && info.Mode().Perm()&0o004 != 0 {
			warnings = append(warnings, cluster.Warning{Path: path, Text: fmt.Sprintf("%s can be read by every user of this host: chmod 600", files[path])})
		}
	}
	return warnings
}
