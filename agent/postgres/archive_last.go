package postgres

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// ArchiveLast gives archive_command the segment with the shutdown checkpoint, and marks it as archived. PostgreSQL
// archives all that comes before as it is shut down, and never that one; whoever follows by the archive alone would begin its
// timeline before the checkpoint, where this data directory could not follow.
func (p *rewinder) ArchiveLast(ctx context.Context, limit time.Duration) error {
	control, err := p.control(ctx)
	if err != nil {
		return err
	}
	if control.State != "shut down" {
		return fmt.Errorf("PostgreSQL is %s, not shut down: its last WAL is not archived", control.State)
	}
	mode, err := p.configured(ctx, "archive_mode")
	if err != nil || mode == "off" {
		return err
	}
	command, err := p.configured(ctx, "archive_command")
	if err != nil {
		return err
	}
	segment, err := p.segmentAt(control.Timeline, control.CheckpointLSN)
	switch {
	case err != nil:
		return err
	case segment == "":
		return errors.New("the segment with the shutdown checkpoint is not there, so it is not archived")
	case command == "":
		return errors.New("archive_command is not set: the last WAL is not archived")
	}
	name := filepath.Base(segment)
	line := strings.NewReplacer("%%", "%", "%p", segment, "%f", name).Replace(command)
	run := script{what: "parameters.archive_command", command: "/bin/sh", args: []string{"-c", line}, limit: limit}
	if err := (&scripts{p.installation}).script(ctx, run); err != nil {
		return err
	}
	return p.writeFile(p.inData(filepath.Join("pg_wal", "archive_status", name+".done")), "")
}

// configured is what a parameter would be in a PostgreSQL that is started now.
func (p *rewinder) configured(ctx context.Context, parameter string) (string, error) {
	out, err := p.run(ctx, "postgres", "-C", parameter, "-D", p.dataDir, "-c", "data_directory="+p.dataDir, "-c", "config_file="+p.inConf("postgresql.conf"))
	if err != nil {
		return "", fmt.Errorf("what %s is: %w", parameter, err)
	}
	return strings.TrimSpace(out), nil
}
