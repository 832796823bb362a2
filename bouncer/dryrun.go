package bouncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/aymanbagabas/go-udiff"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// DryRun writes to w how the installed configuration would change if a bouncer
// applied now what Consul says, as a unified diff; nothing when it would not.
// What speaks against applying it is the error.
func DryRun(ctx context.Context, c config.Config, w io.Writer) error {
	return eachFile(pooler.Probed(ctx, c), func(c config.Config, _ string) error { return dryRun(ctx, c, w) })
}

// dryRun does it for one process.
func dryRun(ctx context.Context, c config.Config, w io.Writer) error {
	version := pooler.AskVersion(ctx, c)
	text, views, err := renderOnce(ctx, c, "", version)
	if text == nil {
		return err
	}
	installed, e := os.ReadFile(c.PgBouncer.Config)
	if e != nil && !errors.Is(e, fs.ErrNotExist) {
		return fmt.Errorf("reading what is installed: %w", e)
	}
	diff := udiff.Unified(c.PgBouncer.Config, c.PgBouncer.Config+" (new)", string(installed), string(text))
	if _, e := io.WriteString(w, diff); e != nil {
		return fmt.Errorf("writing the difference: %w", e)
	}
	file, unfit := render.Check(text, views, c, version)
	if len(views) == 0 && len(installed) > 0 && !c.AllowEmpty {
		unfit = errors.Join(unfit, errors.New("no route is known: a bouncer would leave the file as it is (allow_empty)"))
	}
	return errors.Join(err, unfit, render.CheckFallback(file, views...))
}
