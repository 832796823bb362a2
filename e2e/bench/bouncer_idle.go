package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// idleBouncers measures what a keeper of routes costs that has nothing to do.
func idleBouncers(ctx context.Context, r *bouncerReport) error {
	r.Requests, r.CPUByShards = map[string]float64{}, map[string]float64{}
	template, err := consulTemplateProgram(ctx)
	if err != nil {
		return err
	}
	if r.ConsulTemplate == nil {
		r.ConsulTemplate = &peerFigures{}
	}
	peer := r.ConsulTemplate
	peer.Requests = map[string]float64{}
	for _, n := range []int{1, 100, stormShards} {
		at := strconv.Itoa(n)
		if r.Requests[at], r.CPU, r.MemoryIdle, err = idleAt(ctx, n, lab.LictorBouncer{Edit: everyRoute}); err != nil {
			return fmt.Errorf("%d shards: %w", n, err)
		}
		r.CPUByShards[at] = r.CPU
		if peer.Requests[at], peer.CPU, peer.MemoryIdle, err = idleAt(ctx, n, consulTemplate{template, lictorRoutes}); err != nil {
			return fmt.Errorf("%d shards, consul-template: %w", n, err)
		}
	}
	return nil
}

// idleAt measures one minute in which nothing happens.
func idleAt(ctx context.Context, n int, software lab.PoolerSoftware) (requests, cpu, memory float64, err error) {
	r, err := newRig(ctx, n, software)
	if err != nil {
		return 0, 0, 0, err
	}
	defer r.close()
	if err := r.countRequests(ctx); err != nil {
		return 0, 0, 0, err
	}
	if _, err := r.awaitShown(ctx, 50*time.Millisecond, all(len(r.routes))...); err != nil {
		return 0, 0, 0, err
	}
	if err := sleep(ctx, 10*time.Second); err != nil { // what the start needs is no idling
		return 0, 0, 0, err
	}
	pid := r.keeper.PID()
	before, err := cpuSeconds(pid)
	if err != nil {
		return 0, 0, 0, err
	}
	from := r.requests.Load()
	if err := sleep(ctx, time.Minute); err != nil {
		return 0, 0, 0, err
	}
	requests = float64(r.requests.Load() - from)
	after, err := cpuSeconds(pid)
	if err != nil {
		return 0, 0, 0, err
	}
	memory, err = memoryMiB(pid, "VmRSS")
	return requests, after - before, memory, err
}
