package cluster

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// StandbyCluster makes the shard the standby of another one, at another site (design 5.27).
type StandbyCluster struct {
	// Host is where the remote primary is: a host, or several with commas between them, of which the
	// one that is a primary is followed. Without it WAL comes by restore_command alone.
	Host string `mapstructure:"host"`
	// Port is the port number of PostgreSQL there, of all these hosts. Default: 5432.
	Port int `mapstructure:"port"`
	// PrimarySlotName is the physical replication slot there, which somebody has to make there. Default:
	// none is used.
	PrimarySlotName string `mapstructure:"primary_slot_name"`
	// RestoreCommand is what the standby leader gets WAL by from the remote shard's archive.
	RestoreCommand string `mapstructure:"restore_command"`
	// ArchiveCleanupCommand is PostgreSQL's parameter of that name on the standby leader.
	ArchiveCleanupCommand string `mapstructure:"archive_cleanup_command"`
	// RecoveryMinApplyDelay is PostgreSQL's parameter of that name on the standby leader: text with a
	// unit, or milliseconds.
	RecoveryMinApplyDelay string `mapstructure:"recovery_min_apply_delay"`
	// CreateReplicaMethods are the methods by which a copy of the remote primary is made, instead of
	// postgresql.create_replica_methods.
	CreateReplicaMethods []string `mapstructure:"create_replica_methods"`

	// unclear: the section is there, and it is not known what it says.
	unclear bool
}

// On reports whether the shard is the standby of another one.
func (s StandbyCluster) On() bool { return s.Host != "" || s.RestoreCommand != "" || s.unclear }

// Synchronous reports whether commits wait for standbys: there are none in a standby shard.
func (d Dynamic) Synchronous() bool { return d.SynchronousMode.On() && !d.StandbyCluster.On() }

// remotePrimary begins the names of what standby leaders follow: no member can have one.
const remotePrimary = "remote primary "

// Upstream is the name of what the standby leader follows, which tells it from all members and
// changes with its address; empty: it is not known.
func (s StandbyCluster) Upstream() string {
	switch {
	case s.Host != "":
		return remotePrimary + s.Host + ":" + strconv.Itoa(s.Port)
	case s.RestoreCommand != "":
		return remotePrimary + "by its archive"
	}
	return ""
}

// IsRemote reports whether an upstream's name is that of a remote primary.
func IsRemote(upstream string) bool { return strings.HasPrefix(upstream, remotePrimary) }

// Recovery is what PostgreSQL's recovery parameters are on the standby leader, instead of those of
// other replicas.
func (s StandbyCluster) Recovery() map[string]string {
	recovery := map[string]string{}
	for name, value := range map[string]string{
		"restore_command": s.RestoreCommand, "archive_cleanup_command": s.ArchiveCleanupCommand,
		"recovery_min_apply_delay": s.RecoveryMinApplyDelay,
	} {
		if value != "" {
			recovery[name] = value
		}
	}
	return recovery
}

// HeedStandbyCluster is the section of a configuration that is not valid. What is not understood of
// it counts as a standby cluster: nobody is promoted by mistake.
func HeedStandbyCluster(raw map[string]any) StandbyCluster {
	r := reader{raw: raw}
	s := r.standbyCluster()
	s.unclear = len(r.errs) > 0
	return s
}

// standbyKeys are those of the section standby_cluster.
func standbyKeys() []string {
	return []string{
		"host", "port", "primary_slot_name", "restore_command", "archive_cleanup_command", "recovery_min_apply_delay", "create_replica_methods",
	}
}

// standbyCluster reads the section standby_cluster. An empty one is none.
func (r *reader) standbyCluster() StandbyCluster {
	below := reader{raw: r.object("standby_cluster"), prefix: "standby_cluster."}
	s := StandbyCluster{
		Host: below.hosts(), Port: int(below.number("port", defaultPort, 1, maxPort)), PrimarySlotName: below.text("primary_slot_name"),
		RestoreCommand: below.text("restore_command"), ArchiveCleanupCommand: below.text("archive_cleanup_command"),
		CreateReplicaMethods: below.lines("create_replica_methods"),
	}
	if delay := below.raw["recovery_min_apply_delay"]; delay != nil {
		s.RecoveryMinApplyDelay = ParameterText(delay)
		if !isDelay(s.RecoveryMinApplyDelay) { // PostgreSQL would not start
			below.fail("recovery_min_apply_delay", delay, "must be a whole number with a unit (ms, s, min, h or d), without one it is milliseconds; PostgreSQL takes 2147483647 ms at most")
		}
	}
	parameters := map[string]any{}
	for name, value := range s.Recovery() {
		parameters[name] = value
	}
	below.errs = append(below.errs, CheckParameters("standby_cluster", parameters)...)
	if slot := s.PrimarySlotName; slot != "" && !isSlotName(slot) {
		below.fail("primary_slot_name", slot, slotNameRule)
	}
	if len(below.raw) > 0 && !s.On() && len(below.errs) == 0 {
		r.fail("standby_cluster", nil, "needs host, where the remote primary is, or restore_command, for WAL from its archive alone")
	}
	r.errs = append(r.errs, below.errs...)
	if !s.On() {
		return StandbyCluster{}
	}
	return s
}

// isDelay reports whether PostgreSQL takes a value of recovery_min_apply_delay.
func isDelay(text string) bool {
	number, unit := strings.TrimSpace(text), int64(1)
	for name, ms := range map[string]int64{"ms": 1, "min": 60_000, "h": 3_600_000, "d": 86_400_000} {
		if before, found := strings.CutSuffix(number, name); found {
			number, unit = strings.TrimSpace(before), ms
			break
		}
	}
	if before, found := strings.CutSuffix(number, "s"); found && unit == 1 {
		number, unit = strings.TrimSpace(before), 1000
	}
	n, err := strconv.ParseInt(number, 10, 32)
	return err == nil && n >= 0 && n*unit <= math.MaxInt32
}

// text reads a text.
func (r *reader) text(key string) string {
	value := r.raw[key]
	text, ok := value.(string)
	if value != nil && !ok {
		r.fail(key, value, "must be text")
	}
	return text
}

// standbyAlone warns of what has no effect while the shard is the standby of another one.
func (r *reader) standbyAlone(d Dynamic) {
	section := asMap(r.raw["standby_cluster"])
	r.unknown("standby_cluster.", section, standbyKeys()...)
	if !d.StandbyCluster.On() {
		return
	}
	if d.SynchronousMode.On() {
		r.warn("synchronous_mode", "has no effect before standby_cluster is removed: a standby shard acknowledges no commits")
	}
	if d.StandbyCluster.Host == "" {
		for _, key := range []string{"port", "primary_slot_name"} {
			if section[key] != nil {
				r.warn("standby_cluster."+key, "has no effect without host")
			}
		}
	}
	if methods := d.StandbyCluster.CreateReplicaMethods; methods != nil && slices.Contains(methods, "") {
		r.fail("standby_cluster.create_replica_methods", nil, "must not have an empty name")
	}
}
