package operator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Console is where a command talks to.
type Console struct {
	In       io.Reader
	Out, Err io.Writer
	// Interactive says that a person sits there.
	Interactive bool
	// Colour says that Out shows colours.
	Colour bool
	Format Format
	// Width is how many columns the terminal has that Out is, 0 when it is none.
	Width int

	lines *bufio.Reader
}

// Terminal is the console of this process. There are colours on a terminal unless
// NO_COLOR is set (https://no-color.org) or the terminal is dumb.
func Terminal(f Format) *Console {
	onTerminal := term.IsTerminal(int(os.Stdout.Fd()))
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || !onTerminal {
		width = 0
	}
	return &Console{
		Width: width,
		In:    os.Stdin, Out: os.Stdout, Err: os.Stderr, Format: f,
		Interactive: term.IsTerminal(int(os.Stdin.Fd())),
		Colour:      onTerminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// Say writes a line for people.
func (c *Console) Say(format string, args ...any) {
	fmt.Fprintln(c.Out, printable.Lines(fmt.Sprintf(format, args...)))
}

// Warn writes a line beside the results.
func (c *Console) Warn(format string, args ...any) {
	fmt.Fprintln(c.Err, printable.Block(fmt.Sprintf(format, args...)))
}

// Show writes a table in the wanted format.
func (c *Console) Show(t Table) error {
	t.Width = c.Width
	return t.Write(c.Out, c.Format, c.Colour)
}

// Confirm asks a question whose answer must be yes. Nothing that a command will
// do should surprise who answers: question says all of it.
func (c *Console) Confirm(question string) error {
	answer, err := c.Ask(question + " [y/N]: ")
	if err != nil {
		return fmt.Errorf("%w; where nobody can answer, say --force", err)
	}
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return refusedf("nothing was done: the answer was %q, not yes", answer)
	}
	return nil
}

// Ask asks a question and returns the answer without the space around it. The
// answer may also come from a pipe.
func (c *Console) Ask(question string) (string, error) {
	if c.lines == nil {
		c.lines = bufio.NewReader(c.In)
	}
	fmt.Fprint(c.Err, printable.Block(question))
	line, err := c.lines.ReadString('\n')
	if err != nil && (!errors.Is(err, io.EOF) || line == "") {
		fmt.Fprintln(c.Err) // the error begins a line
		return "", refusedf("nothing was done: nobody has answered (%w)", err)
	}
	return strings.TrimSpace(line), nil
}

// Watch runs show again and again until ctx ends, each time on a screen of its
// own; once when every is 0.
func (c *Console) Watch(ctx context.Context, every time.Duration, show func(ctx context.Context, c *Console) error) error {
	if every <= 0 {
		return show(ctx, c)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var screen strings.Builder
		page := *c
		page.Out = &screen
		if err := show(ctx, &page); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the person has seen enough
			}
			fmt.Fprintln(&screen, Explain(err))
		}
		if c.Colour {
			fmt.Fprint(c.Out, "\x1b[H\x1b[2J") // to the corner, and clear
		}
		fmt.Fprint(c.Out, screen.String())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
