package demo

import (
	"fmt"
	"strings"
	"time"
)

// screen is everything that the live view shows.
type screen struct {
	picture
	now     time.Duration // since the start
	aimed   int           // the shard that the keys break
	busy    string        // the scenario under way
	events  []string      // the newest last
	connect []string      // how to connect
	width   int
	height  int
	colours bool
}

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (s screen) paint(code, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// lines draws the screen. The last events take whatever room is left.
func (s screen) lines() []string {
	out := []string{
		s.paint(bold, "Lictor demo") + fmt.Sprintf("  %s   keys break %s", clock(s.now), s.paint(bold, s.shards[s.aimed].name)), "",
		s.paint(dim, fmt.Sprintf("  %-14s %-17s %-13s %-18s %3s %9s %9s", "MEMBER", "ADDRESS", "ROLE", "STATE", "TL", "LAG", "LEASE")),
	}
	for _, shard := range s.shards {
		out = append(out, s.shard(shard)...)
	}
	out = append(out, "")
	for _, p := range s.poolers {
		out = append(out, s.pooler(p))
	}
	out = append(out, "")
	out = append(out, s.connect...)
	out = append(out, "")
	out = append(out, s.keys()...)
	out = append(out, "")
	if room := s.height - len(out); room > 0 {
		out = append(out, s.events[max(0, len(s.events)-room):]...)
	}
	for i, line := range out {
		out[i] = cut(line, s.width)
	}
	if s.height > 0 && len(out) > s.height {
		out = out[:s.height]
	}
	return out
}

func (s screen) shard(p shardPicture) []string {
	clients := fmt.Sprintf("%4.0f writes/s  %d rows  %d errors", p.perSecond, p.written, p.failed)
	if p.waiting > 300*time.Millisecond {
		clients += s.paint(red, fmt.Sprintf("  no write for %.1f s", p.waiting.Seconds()))
	}
	out := []string{s.paint(bold, p.name) + "  " + clients}
	for _, m := range p.members {
		out = append(out, s.member(m))
	}
	return out
}

func (s screen) member(m memberPicture) string {
	if m.silent {
		return fmt.Sprintf("  %-14s %-17s %s", m.name, m.address, s.paint(red, "does not answer"))
	}
	lag, lease := "", ""
	if m.role != "primary" {
		lag = bytesText(m.lag)
	}
	if m.lease >= 0 {
		lease = fmt.Sprintf("%.1f s", m.lease.Seconds())
	}
	line := fmt.Sprintf("  %-14s %-17s %-13s %-18s %3d %9s %9s", m.name, m.address, m.role, m.state, m.timeline, lag, lease)
	switch {
	case m.role == "primary":
		return s.paint(green, line)
	case m.state != "running" && m.state != "streaming":
		return s.paint(yellow, line)
	}
	return line
}

func (s screen) pooler(p poolerPicture) string {
	health := s.paint(green, "healthy")
	if !p.healthy {
		health = s.paint(red, "not healthy")
	}
	var routes []string
	for _, shard := range s.shards {
		if to, known := p.routes[shard.name]; known && to != "" {
			routes = append(routes, shard.name+" -> "+to)
		}
	}
	if p.note != "" {
		routes = append(routes, p.note)
	}
	return fmt.Sprintf("%s  %s  %s", s.paint(bold, p.name), health, strings.Join(routes, "   "))
}

func (s screen) keys() []string {
	if s.busy != "" {
		return []string{s.paint(yellow, "under way: "+s.busy), s.paint(dim, "q quits")}
	}
	var out []string
	for _, sc := range scenarios() {
		out = append(out, fmt.Sprintf("  %s  %-19s %s", s.paint(bold, string(sc.key)), sc.name, sc.title))
	}
	return append(out, fmt.Sprintf("  %s  next shard   %s  quit", s.paint(bold, "tab"), s.paint(bold, "q")))
}

// plain is the picture in one line for each shard, for logs.
func (s screen) plain() []string {
	var out []string
	for _, shard := range s.shards {
		var members []string
		for _, m := range shard.members {
			what := fmt.Sprintf("%s/%s tl %d", m.role, m.state, m.timeline)
			if m.silent {
				what = "does not answer"
			}
			members = append(members, m.name+" "+what)
		}
		out = append(out, fmt.Sprintf("%s: %.0f writes/s, %d rows, %d errors; %s",
			shard.name, shard.perSecond, shard.written, shard.failed, strings.Join(members, ", ")))
	}
	return out
}

func clock(d time.Duration) string {
	d = d.Truncate(time.Second)
	return fmt.Sprintf("%d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

func bytesText(n int64) string {
	switch {
	case n < 0:
		return "unknown"
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d kB", n>>10)
	}
	return fmt.Sprintf("%d MB", n>>20)
}

// cut shortens a line to the terminal's width, not counting the colours, which
// it always ends.
func cut(line string, width int) string {
	if width <= 0 {
		return line
	}
	var out strings.Builder
	seen, coloured := 0, false
	for i := 0; i < len(line); {
		if line[i] == '\x1b' {
			end := strings.IndexByte(line[i:], 'm')
			if end < 0 {
				break
			}
			out.WriteString(line[i : i+end+1])
			coloured = line[i:i+end+1] != "\x1b[0m"
			i += end + 1
			continue
		}
		if seen == width {
			break
		}
		out.WriteByte(line[i])
		seen++
		i++
	}
	if coloured {
		out.WriteString("\x1b[0m")
	}
	return out.String()
}
