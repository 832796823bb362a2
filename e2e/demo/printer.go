package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// printer writes whole lines from several goroutines. While a live view owns
// the terminal the lines go there.
type printer struct {
	mu   sync.Mutex
	out  io.Writer
	live func(line string) // nil: write to out
}

func newPrinter(out io.Writer) *printer { return &printer{out: out} }

func (p *printer) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live != nil {
		p.live(text)
		return
	}
	fmt.Fprintln(p.out, text)
}

// divert hands all further lines to live; nil takes that back.
func (p *printer) divert(live func(line string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = live
}

// frame redraws the whole screen in one write, without a flicker: every line
// clears what was behind it, the end what was below. The terminal is in raw
// mode, so a line ends with both characters.
func (p *printer) frame(lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	fmt.Fprint(p.out, home+strings.Join(lines, clearLine+"\r\n")+clearLine+clearBelow)
}
