package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/consul"
)

// shard is what the operator's commands need: the shard in Consul, and its
// members' REST API.
type shard struct {
	cfg   config.Config
	store *consul.Store
}

func openShard(path string) (shard, error) {
	source, err := configSource([]string{path}, nil)
	if err != nil {
		return shard{}, err
	}
	cfg, _, err := config.Load(source)
	if err != nil {
		return shard{}, err
	}
	clients, err := cfg.Consul.ClientConfigs()
	if err != nil {
		return shard{}, err
	}
	store, err := consul.New(clients, cfg.Keys())
	return shard{cfg, store}, err
}

const readTimeout = 10 * time.Second

func (s shard) read(cmd *cobra.Command) (cluster.Snapshot, error) {
	ctx, cancel := contextWithTimeout(cmd, readTimeout)
	defer cancel()
	return s.store.Read(ctx)
}

func listCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "list -c FILE",
		Short: "Show the members of a shard",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openShard(file)
			if err != nil {
				return err
			}
			snapshot, err := s.read(cmd)
			if err != nil {
				return err
			}
			return api.FormatList(cmd.OutOrStdout(), s.cfg.Scope, snapshot)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func switchoverCommand() *cobra.Command {
	var file, leader, candidate, onBusy string
	cmd := &cobra.Command{
		Use:   "switchover -c FILE [--leader NAME] [--candidate NAME]",
		Short: "Hand a shard over to another member",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openShard(file)
			if err != nil {
				return err
			}
			snapshot, err := s.read(cmd)
			if err != nil {
				return err
			}
			now := snapshot.LeaderName()
			m, found := snapshot.Member(now)
			switch {
			case now == "" || !found:
				return fmt.Errorf("shard %s has no leader: nothing can be switched over", s.cfg.Scope)
			case leader != "" && leader != now:
				return fmt.Errorf("shard %s is led by %s, not by %s", s.cfg.Scope, now, leader)
			}
			client, err := api.NewClient(s.cfg.Ctl, s.cfg.RestAPI)
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := contextWithTimeout(cmd, 3*time.Minute)
			defer cancel()
			body := map[string]string{"leader": now, "candidate": candidate}
			if candidate == "" {
				delete(body, "candidate")
			}
			if onBusy != "" {
				body["on_busy"] = onBusy
			}
			answer, err := client.Post(ctx, m.Value.APIURL, "/switchover", body)
			if err != nil {
				return fmt.Errorf("asking %s: %w", now, err)
			}
			if !answer.OK() {
				if answer.Reason != "" {
					return fmt.Errorf("%s: %s", answer.Text, answer.Reason)
				}
				return errors.New(answer.Text)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s in %s\n", answer.Text, answer.Took.Round(time.Millisecond))
			return nil
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&leader, "leader", "", "refuse unless this member leads")
	cmd.Flags().StringVar(&onBusy, "on-busy", "", "transactions that still run when the poolers hold the clients: cancel (after 2 s, the default), wait, refuse")
	cmd.Flags().StringVar(&candidate, "candidate", "", "the member that is to lead (default: the best)")
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "an agent's configuration file")
	_ = cmd.MarkFlagRequired("config") // fails only for a flag that does not exist
}
