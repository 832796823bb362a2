package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/google/shlex"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Command is a command that the operator has configured. It is split into words as a shell would,
// once and before any name is put in: a name is never more than a part of one word, and no shell
// runs.
type Command struct{ words []string }

// ParseCommand reads a command. The empty text is no command, which Exists tells.
func ParseCommand(text string) (Command, error) {
	words, err := shlex.Split(text)
	switch {
	case err != nil:
		return Command{}, fmt.Errorf("%s is no command: %w", printable.Quote(text), err)
	case len(words) == 0 && text != "":
		return Command{}, fmt.Errorf("%s is no command", printable.Quote(text))
	case len(words) > 0 && strings.Contains(words[0], "%"):
		return Command{}, errors.New("the program itself must not depend on the host")
	}
	return Command{words: words}, nil
}

// Exists reports whether there is a command.
func (c Command) Exists() bool { return len(c.words) > 0 }

// Target is what a command is about. The names are checked ones (cluster.CheckName, CheckHost): none
// begins with a dash.
type Target struct{ Kind, Shard, Member, Host string }

// Line are the words of the command for a target: %h is its host, %m its member, %s its shard, %% a
// percent sign. Other letters stay as they are.
func (c Command) Line(t Target) []string {
	replace := strings.NewReplacer("%%", "%", "%h", t.Host, "%m", t.Member, "%s", t.Shard)
	words := make([]string, len(c.words))
	for i, word := range c.words {
		words[i] = replace.Replace(word)
	}
	return words
}

// environment is how a command gets the same names.
func (t Target) environment() []string {
	return []string{
		"LICTOR_DRILL_KIND=" + t.Kind, "LICTOR_DRILL_SHARD=" + t.Shard, "LICTOR_DRILL_MEMBER=" + t.Member, "LICTOR_DRILL_HOST=" + t.Host,
	}
}

// lastWords is how long is waited for the output of what a command has left behind.
const lastWords = 2 * time.Second

// Run runs the command to its end. What it prints goes to out, made safe.
func (c Command) Run(ctx context.Context, t Target, out io.Writer) error {
	line := c.Line(t)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), t.environment()...)
	cmd.WaitDelay = lastWords
	output := printable.Writer(out)
	cmd.Stdout, cmd.Stderr = output, output
	err := cmd.Run()
	shown := printable.Text(strings.Join(line, " "))
	switch {
	case errors.Is(err, exec.ErrWaitDelay): // it has ended well; what it left behind holds the output
		return nil
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", shown, ctx.Err())
	case err != nil:
		return fmt.Errorf("%s: %w", shown, err)
	}
	return nil
}
