package operator

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/placement"
	"github.com/lictor-ha/lictor/agent/proof"
)

// What somebody says who has a member's port is shown as that, and no leader is moved by it, nor
// where this command cannot read what members prove themselves by. A member of Patroni's proves
// nothing, and is believed by its key.
func TestNothingIsPlannedByUnprovedAnswers(t *testing.T) {
	secret := proof.NewSecret()
	held := &proof.Keeper{}
	held.Keep(secret)
	// A member that proves its answers, and somebody who says the same.
	serve := func(name, body string, honest bool) string {
		verifier := proof.NewVerifier(held, func() string { return name })
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			proven, err := verifier.Check(r)
			if honest && errors.Is(err, proof.ErrChallenge) {
				verifier.Challenge(w.Header())
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if honest {
				proven.Mark(w.Header(), name, http.StatusOK, []byte(body))
			}
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(server.Close)
		return server.URL + "/patroni"
	}
	const (
		leads   = `{"state":"running","role":"primary","lictor":{"lease_left_ms":7000,"secrets":["s"],"loop_age_ms":1,"guard":{"running":true}}}`
		follows = `{"state":"running","role":"replica","replication_state":"streaming","lictor":{"secrets":["s"],"loop_age_ms":1,"guard":{"running":true}}}`
	)
	for _, tt := range []struct {
		name                   string
		honestLeader, honestTo bool
		readable               bool // the secret
		patroni                bool // the members' keys say so
		leader, to             string
		alarm, found           string
		known                  bool // what is left of the lease
	}{
		{name: "both prove themselves", honestLeader: true, honestTo: true, readable: true, known: true},
		{
			name: "somebody has the leader's port", honestTo: true, readable: true,
			leader: "does not prove to be a", alarm: "does not prove to be a", found: "does not prove to be a",
		},
		{
			name: "somebody has the candidate's port", honestLeader: true, readable: true, known: true,
			to: "does not prove to be b", found: "does not prove to be b",
		},
		{
			name: "the secret may not be read", honestLeader: true, honestTo: true, known: true,
			leader: "whether it is a that answers is not known", to: "whether it is b that answers is not known",
			found: "whether it is the members that answer is not known",
		},
		{name: "Patroni", readable: true, patroni: true, known: true},
		{name: "Patroni, without a secret", patroni: true, known: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snapshot := shardOf(func(s *cluster.Snapshot) {
				s.Members = s.Members[:2]
				s.Members[0].Value.APIURL = serve("a", leads, tt.honestLeader)
				s.Members[1].Value.APIURL = serve("b", follows, tt.honestTo)
				for i := range s.Members {
					s.Members[i].Value.State = cluster.StateStarting // no doctor asks its PostgreSQL
					if !tt.patroni {
						s.Members[i].Value.Lictor = &cluster.MemberLictor{}
					}
				}
			})
			consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Consul-Index", "1")
				pairs := consulapi.KVPairs{}
				if tt.readable && strings.HasPrefix(r.URL.Path, "/v1/kv/lictor/secrets/service/") {
					pairs = append(pairs, &consulapi.KVPair{Key: "lictor/secrets/service/x", Value: secret.Encode(), ModifyIndex: 1})
				}
				if len(pairs) == 0 {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				_ = json.NewEncoder(w).Encode(pairs)
			}))
			defer consul.Close()
			site, err := Connect(Settings{Namespace: "service", Consul: settings.Consul{URL: consul.URL}})
			if err != nil {
				t.Fatal(err)
			}
			f := fleet{shards: []fleetShard{{scope: "x", snapshot: snapshot}}}

			client, err := site.memberClient()
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			f.learnSecrets(t.Context(), site)
			f.askLeaders(t.Context(), client, leaseLimit)
			alarmed := ""
			for _, a := range f.shards[0].alarms() {
				alarmed += a.what + "\n"
			}
			if f.shards[0].lease.known != tt.known || strings.Contains(alarmed, "does not prove") != (tt.alarm != "") || !strings.Contains(alarmed, tt.alarm) {
				t.Errorf("fleet: lease known: %v, alarms:\n%s", f.shards[0].lease.known, alarmed)
			}

			found := ""
			for _, finding := range site.lookAtMembers(t.Context(), fleet{shards: []fleetShard{{scope: "x", snapshot: snapshot}}}) {
				if finding.Level != Fine && finding.Area == "agent" {
					found += finding.What + "\n"
				}
			}
			if tt.found == "" && strings.Contains(found, "prove") || !strings.Contains(found, tt.found) {
				t.Errorf("doctor, want %q:\n%s", tt.found, found)
			}

			move := placement.Move{Shard: "x", From: placement.Member{Name: "a"}, To: placement.Member{Name: "b"}}
			v := newSurvey(site, fleet{shards: []fleetShard{{scope: "x", snapshot: snapshot}}}, MoveOptions{ZoneTag: DefaultZoneTag})
			planned := 0
			plan, err := v.plan(t.Context(), func(shards []placement.Shard) placement.Plan {
				if planned++; planned > 1 {
					return placement.Plan{}
				}
				return placement.Plan{Moves: []placement.Move{move}}
			})
			if err != nil {
				t.Fatal(err)
			}
			moves := tt.leader == "" && tt.to == ""
			if (len(plan.Moves) == 1) != moves {
				t.Errorf("the plan is %+v", plan)
			}
			stuck, unfit := v.shards[0].Stuck, v.shards[0].Others[0].Unfit
			if tt.leader != "" && !strings.Contains(stuck.What, tt.leader) || tt.to != "" && !strings.Contains(unfit.What, tt.to) {
				t.Errorf("leader: %q, candidate: %q", stuck, unfit)
			}
		})
	}
}

// An answer that another member of the shard gives is not the asked one's.
func TestAnotherMembersAnswer(t *testing.T) {
	e := &api.Unproved{Peer: api.Peer{Name: "a", APIURL: "http://10.0.0.1:8008"}, Answer: api.Answer{Proved: true, ProvedBy: "b", Text: "secret words"}}
	if who := e.Who(); who != `"b", who answers at http://10.0.0.1:8008 does not prove to be a, by the shard's secret` {
		t.Error(who)
	}
}
