package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// Runner plays rounds of faults on one long-lived site.
type Runner struct {
	Site *Site
	// Seed makes everything random repeatable, as far as real processes are.
	Seed uint64
	// Artifacts is a directory for what explains a violation; empty: nowhere.
	Artifacts string
	// KeepOver, when set, keeps the same for rounds in which writes stopped for
	// longer than that, violation or not.
	KeepOver time.Duration

	played int
}

// Round is the record of one round. Times are milliseconds.
type Round struct {
	Number int       `json:"round"`
	Seed   uint64    `json:"seed"`
	Fault  string    `json:"fault"`
	Begun  time.Time `json:"begun"`
	TTL    int       `json:"ttl_s"`
	Async  bool      `json:"async"`
	// Dynamic is what else the shard was configured with.
	Dynamic map[string]any `json:"dynamic,omitempty"`
	Targets []string       `json:"targets"`
	// Steps are what was done and seen, with the time since the round began.
	Steps []string `json:"steps"`

	LeaderBefore string `json:"leader_before"`
	LeaderAfter  string `json:"leader_after"`
	Promoted     bool   `json:"promoted"` // the timeline has changed

	// WriteGapMS is the longest time between two acknowledged writes, CalmGapMS
	// the same before the fault, GapLimitMS what the fault may cost.
	WriteGapMS   int64 `json:"write_gap_ms"`
	CalmGapMS    int64 `json:"calm_gap_ms"`
	GapLimitMS   int64 `json:"gap_limit_ms"`
	GapAfterMS   int64 `json:"gap_after_ms"` // when the gap began, after the fault
	ClientErrors int   `json:"client_errors"`
	Acked        int64 `json:"acked"`
	Lost         int64 `json:"lost_acked"`

	// OverlapMS is for how long two members certainly accepted commits at once,
	// MarginMS the least certain time between the last commit of one and the
	// first of the next (nil: only one did).
	OverlapMS float64  `json:"overlap_ms"`
	MarginMS  *float64 `json:"margin_ms"`
	Reigns    []Reign  `json:"reigns"`

	HeldMS  int64   `json:"held_ms"`  // from the fault until it was taken back
	WholeMS int64   `json:"whole_ms"` // from then until the shard was whole
	Checked int     `json:"checked_operations"`
	Verdict Verdict `json:"porcupine"`

	// Violations say, in words, which promise was broken. Wrecked tells that the
	// site did not become whole again and is of no more use.
	Violations []string `json:"violations"`
	Wrecked    bool     `json:"wrecked,omitempty"`
}

// Play plays one round. Its error says that the lab itself failed; what the
// product did wrong is in the round's violations.
func (r *Runner) Play(ctx context.Context, f Fault) (Round, error) {
	r.played++
	p := &play{
		site: r.Site, fault: f, artifacts: r.Artifacts, keepOver: r.KeepOver,
		round: Round{
			Number: r.played, Seed: r.Seed, Fault: f.Name, Begun: time.Now(),
			TTL: int(r.Site.Timing.TTL / time.Second), Async: r.Site.Options.Async, Dynamic: r.Site.Options.Dynamic,
		},
	}
	random := rand.New(rand.NewPCG(r.Seed, uint64(r.played)))
	if err := p.run(ctx, random); err != nil {
		return p.round, fmt.Errorf("round %d, %s: %w", r.played, f.Name, err)
	}
	return p.round, nil
}

// play is one round under way.
type play struct {
	site      *Site
	fault     Fault
	artifacts string
	keepOver  time.Duration
	round     Round

	writes  *lab.Workload
	checked *Checked

	injected, healed time.Time
}

func (p *play) say(line string) {
	line = fmt.Sprintf("+%.1f s %s", time.Since(p.round.Begun).Seconds(), line)
	p.round.Steps = append(p.round.Steps, line)
	p.site.Options.Progress(line)
}

func (p *play) violate(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	p.round.Violations = append(p.round.Violations, line)
	p.site.Options.Progress("VIOLATION: " + line)
}

func (p *play) run(ctx context.Context, random *rand.Rand) error {
	stage, before, err := p.calm(ctx, random)
	if err != nil {
		return err
	}
	defer p.writes.Stop()
	defer p.checked.Stop()
	if err := p.breakAndHeal(ctx, stage); err != nil {
		return err
	}
	after, err := p.recover(ctx)
	if err != nil {
		return err
	}
	p.writes.Stop()
	p.checked.Stop()
	if p.round.Wrecked {
		p.collect()
		p.keep(nil)
		return nil
	}
	return p.judge(ctx, before, after)
}

// sight is what a round compares.
type sight struct {
	leader   *lab.Member
	timeline int
}

func (p *play) look(ctx context.Context) (sight, error) {
	leader, err := p.site.Shard.AwaitHealthy(ctx)
	if err != nil {
		return sight{}, err
	}
	status, err := leader.Status(ctx)
	return sight{leader, status.Timeline}, err
}

// calm waits for a whole site, starts the clients and lets them work for a while.
func (p *play) calm(ctx context.Context, random *rand.Rand) (*Stage, sight, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("gave up after a minute"))
	defer cancel()
	if err := p.site.AwaitWhole(ctx); err != nil {
		return nil, sight{}, err
	}
	before, err := p.look(ctx)
	if err != nil {
		return nil, sight{}, err
	}
	stage := &Stage{Site: p.site, Primary: before.leader, Rand: random, say: p.say}
	if err := stage.cast(ctx); err != nil {
		return nil, sight{}, err
	}
	p.site.Witness.Reset()
	clientCtx := context.WithoutCancel(ctx)
	p.writes = p.site.Shard.StartWorkload(clientCtx, lab.WorkloadOptions{})
	p.checked = startChecked(clientCtx, p.site.Shard, fmt.Sprintf("%d", p.round.Number), random.Uint64())
	stop := func(err error) (*Stage, sight, error) {
		p.writes.Stop()
		p.checked.Stop()
		return nil, sight{}, err
	}
	if err := awaitAck(ctx, p.writes); err != nil {
		return stop(err)
	}
	begun := time.Now()
	if err := pause(ctx, undisturbed); err != nil {
		return stop(err)
	}
	p.round.CalmGapMS = p.writes.Writes.LongestGap(begun, time.Now()).Milliseconds()
	p.round.LeaderBefore = before.leader.Name
	return stage, before, nil
}

// cast says who plays which part.
func (s *Stage) cast(ctx context.Context) error {
	snapshot, err := s.Shard.Snapshot(ctx)
	if err != nil {
		return err
	}
	synchronous := map[string]bool{}
	if snapshot.Sync.OK() {
		for _, name := range snapshot.Sync.Value.Standbys() {
			synchronous[name] = true
		}
	}
	for _, m := range s.Shard.Members() {
		switch {
		case m == s.Primary:
		case s.Standby == nil:
			s.Standby = m
		case synchronous[m.Name] && !synchronous[s.Standby.Name]:
			s.Standby, s.Third = m, s.Standby
		default:
			s.Third = m
		}
	}
	if s.Third == nil {
		return errors.New("the shard has less than three members")
	}
	return nil
}

func (p *play) breakAndHeal(ctx context.Context, stage *Stage) error {
	limit := p.fault.timeout()
	p.injected = time.Now()
	err := func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("gave up after %v", limit))
		defer cancel()
		if err := p.fault.Inject(ctx, stage); err != nil {
			return fmt.Errorf("inject: %w", err)
		}
		if p.fault.Hold == nil {
			return nil
		}
		return p.fault.Hold(ctx, stage)
	}()
	p.round.Targets = stage.targets
	if err != nil {
		// What was awaited did not happen, or the lab could not break what it
		// wanted to: both need a look.
		p.violate("the fault did not take its course: %v", err)
	}
	p.round.HeldMS = time.Since(p.injected).Milliseconds()
	p.say("healing")
	healCtx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, fmt.Errorf("gave up after %v", limit))
	defer cancel()
	p.healed = time.Now()
	if err := stage.heal(healCtx); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	for _, name := range p.site.ended() {
		p.violate("%s has ended by itself", name)
	}
	return ctx.Err()
}

// recover waits until the site is whole and the clients write again.
func (p *play) recover(ctx context.Context) (sight, error) {
	limit := p.fault.timeout()
	whole, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("gave up after %v", limit))
	defer cancel()
	after, err := func() (sight, error) {
		if err := p.site.awaitServing(whole); err != nil {
			return sight{}, err
		}
		p.round.WholeMS = time.Since(p.healed).Milliseconds()
		p.say("whole")
		if err := p.site.awaitConsulWhole(whole); err != nil {
			return sight{}, err
		}
		// A gap ends with an acknowledgement; one of after the recovery. What a
		// deposed leader still might do, it does by then.
		if err := awaitAck(whole, p.writes); err != nil {
			return sight{}, err
		}
		if err := pause(whole, time.Second); err != nil {
			return sight{}, err
		}
		return p.look(whole)
	}()
	if ctx.Err() != nil {
		return sight{}, context.Cause(ctx)
	}
	if err != nil {
		p.violate("the shard did not become whole again: %v", err)
		p.round.Wrecked = true
	}
	return after, nil
}

func awaitAck(ctx context.Context, w *lab.Workload) error {
	from := w.Writes.Acked()
	return await(ctx, "no write is acknowledged", func(context.Context) error {
		if n := w.Writes.Acked() - from; n < 5 {
			return fmt.Errorf("%d rows since", n)
		}
		return nil
	})
}

// collect notes what needs no working shard.
func (p *play) collect() {
	now := time.Now()
	gap := p.writes.Writes.LongestGap(p.injected, now)
	p.round.WriteGapMS = gap.Milliseconds()
	p.round.GapAfterMS = gapBegan(p.writes.Writes.Acks(p.injected, now), gap).Sub(p.injected).Milliseconds()
	p.round.ClientErrors = len(p.writes.Writes.Errors(p.injected, now)) + len(p.writes.Reads.Errors(p.injected, now))
	p.round.Acked = p.writes.Writes.Acked()
	p.round.Reigns = p.site.Witness.Reigns()
	o := Overlaps(p.round.Reigns)
	p.round.OverlapMS = milliseconds(o.Proven)
	if o.Between[0].Commits > 0 {
		margin := milliseconds(o.Margin)
		p.round.MarginMS = &margin
	}
	if o.Proven > 0 && !p.fault.Expect.Frozen {
		p.violate("two members accepted commits at once for %.1f ms", p.round.OverlapMS)
	}
	p.round.Checked = p.checked.Operations()
}

func (p *play) judge(ctx context.Context, before, after sight) error {
	p.collect()
	e := p.fault.Expect
	limit := e.limit(p.site.Timing, time.Duration(p.round.HeldMS)*time.Millisecond) + p.site.Options.Slack
	p.round.GapLimitMS = limit.Milliseconds()
	p.round.LeaderAfter = after.leader.Name
	p.round.Promoted = after.timeline != before.timeline
	changed := p.round.Promoted || before.leader != after.leader
	if changed && e.Leader == Stays {
		p.violate("the leadership changed (%s on timeline %d, then %s on %d), which this fault must not bring about",
			before.leader.Name, before.timeline, after.leader.Name, after.timeline)
	}
	if !changed && e.Leader == MustChange {
		p.violate("%s still leads, on its old timeline", after.leader.Name)
	}
	if p.round.WriteGapMS > p.round.GapLimitMS {
		p.violate("no write was acknowledged for %d ms, more than the %d ms that this fault may cost", p.round.WriteGapMS, p.round.GapLimitMS)
	}
	lossCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	loss, err := p.writes.LostAcked(lossCtx)
	if err != nil {
		return err
	}
	p.round.Acked, p.round.Lost = loss.Acked, loss.Lost
	if loss.Lost > 0 && (!p.site.Options.Async || !e.AsyncLoss) {
		p.violate("%d of %d acknowledged rows are gone: %v", loss.Lost, loss.Acked, loss.IDs)
	}
	p.round.Verdict = NotJudged
	var pictures map[string]Picture
	if !p.site.Options.Async {
		p.round.Verdict, pictures = p.checked.Judge(p.site.Options.CheckLimit)
	}
	for name := range pictures {
		p.violate("the history of the %s is not linearizable", name)
	}
	slow := p.keepOver > 0 && p.round.WriteGapMS > p.keepOver.Milliseconds()
	if len(p.round.Violations) > 0 || slow {
		p.keep(pictures)
	}
	return nil
}

// keep copies what explains a violation to the artifacts. It is for a person to
// read: what cannot be copied is said, and is no error of the round.
func (p *play) keep(pictures map[string]Picture) {
	if p.artifacts == "" {
		return
	}
	dir := filepath.Join(p.artifacts, fmt.Sprintf("round-%03d-%s", p.round.Number, p.fault.Name))
	err := os.MkdirAll(filepath.Join(dir, "log"), 0o755)
	if err == nil {
		err = errors.Join(os.CopyFS(filepath.Join(dir, "log"), os.DirFS(filepath.Join(p.site.Lab.Dir, "log"))), p.writes.Save(dir))
	}
	for name, draw := range pictures {
		err = errors.Join(err, draw(filepath.Join(dir, name+".html")))
	}
	if err != nil {
		p.say("could not keep all of what explains this: " + err.Error())
		return
	}
	p.say("logs and histories are in " + dir)
}

// gapBegan is when a gap of that length began: between two of the
// acknowledgements, or else before the first of them.
func gapBegan(acks []lab.Ack, gap time.Duration) time.Time {
	for i := 1; i < len(acks); i++ {
		if acks[i].At.Sub(acks[i-1].At) >= gap {
			return acks[i-1].At
		}
	}
	if len(acks) == 0 {
		return time.Now().Add(-gap)
	}
	return acks[0].At.Add(-gap)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
