package bouncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"

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

// RightsNote says what of a rendered configuration depends on the rights of whoever renders it; empty: nothing. A
// bouncer runs as another user, mostly.
func RightsNote(ctx context.Context, c config.Config) string {
	can, _ := pooler.Probed(ctx, c).Closing()
	if !c.IsBeside() || pooler.AskVersion(ctx, c).AtLeast(1, 24) {
		return ""
	}
	name := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	may := "may not"
	if can {
		may = "may"
	}
	return fmt.Sprintf("rendered with the rights of %s, who %s close PgBouncer's connections (CAP_NET_ADMIN): tcp_user_timeout depends on that; a bouncer with other rights writes another one", name, may)
}
