package ha

import "time"

// shutDownPatience is how long a PostgreSQL that was shut down from outside may take
// to pass its last WAL on.
const shutDownPatience = 5 * time.Second

// shutDown: PostgreSQL was told to stop from outside this agent, has made its
// shutdown checkpoint, and its postmaster does not end (an archive_command that hangs,
// a standby that does not answer). It lets nobody in, as during a start, and would
// never come up again.
//
//	seen so       paused    decision
//	any           yes       wait
//	just now      no        wait
//	a while ago   no        end what is left; then it is down as any other
func shutDown(v View) (Decision, bool) {
	since := v.Postgres.ShutDown
	if since.IsZero() || !v.Postgres.Running || v.Task != TaskNone {
		return Decision{}, false
	}
	end := since.Add(shutDownPatience)
	if v.Config.Pause || v.Now.Before(end) {
		return wait("PostgreSQL was shut down from outside the agent; waiting for its processes").by(end), true
	}
	return v.unlessFailing(do("PostgreSQL is shut down, but its processes do not end", EndShutDown{})), true
}
