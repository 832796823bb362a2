package commands

import (
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	agentconfig "github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/systemd"
	"github.com/lictor-ha/lictor/agent/web"
	"github.com/lictor-ha/lictor/bouncer"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// webMemory is what the fleet page tries to do with, in bytes: what a thousand shards need, as a
// read of them leaves several times as much garbage.
const webMemory = 36 << 20

func webCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "web [FILE]",
		Short: "Serve the fleet page: all shards in a browser, live, read only",
		Long: "Runs in the foreground and serves one page for all shards, worst first, at http://127.0.0.1:8010 unless FILE\n" +
			"says otherwise (docs/web.md). It changes nothing, and asks Consul no more for many browsers than for one.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := settings.Source{Environ: os.Environ()}
			if len(args) > 0 {
				source.Path = args[0]
			}
			cfg, warnings, err := web.Load(source)
			if err != nil {
				return err
			}
			logs, err := newLog(cfg.Log.Level, cfg.Log.Format)
			if err != nil {
				return err
			}
			defer logs.Close(lastLines)
			logs.Hide(settings.Secrets(cfg))
			log := logs.Logger()
			for _, w := range warnings {
				log.Warn().Msg(w.String())
			}
			notifier, err := systemd.New()
			if err != nil {
				return err
			}
			server, err := web.New(cfg, version, log)
			if err != nil {
				return err
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			notified := make(chan struct{})
			go func() {
				defer close(notified)
				if err := notifier.Run(ctx); err != nil {
					log.Error().Err(err).Msg("systemd does not hear of the fleet page")
				}
			}()
			defer func() { cancel(); <-notified }()
			keepLittleGarbage()
			if os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(webMemory)
			}
			return server.Run(ctx, func(address string) {
				log.Info().Str("address", address).Bool("tls", cfg.CertFile != "").Msg("serving the fleet page")
				notifier.Ready()
			})
		},
	}
	return cmd
}

// bouncerPage makes the fleet page that a bouncer serves: of the Consul that the bouncer asks, and
// with its certificates where leaders want to see some.
func bouncerPage(c config.Config, access httpserver.Access) (bouncer.Page, error) {
	return web.NewPage(operator.Settings{
		Namespace: c.WebNamespace, Prefix: c.RoutesPrefix, Consul: c.Consul,
		Ctl: agentconfig.Ctl{CertFile: c.CertFile, KeyFile: c.KeyFile, KeyFilePassword: c.KeyFilePassword, CACert: c.CAFile, VerifyNames: c.VerifyNames},
	}, operator.DefaultZoneTag, access, c.Version)
}
