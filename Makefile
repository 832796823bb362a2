# Lictor's build. `make help` lists the targets.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS   += --no-print-directory

# The version comes from the last tag v*; before the first one, from the commit.
VERSION ?= $(or $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)),0.1.0$(addprefix +,$(shell git describe --always --dirty 2>/dev/null)))

GO      ?= go
ARGS    ?=
REPORT  ?=
ONLY    ?=
# VCS stamping is off because the version is stamped here, and because it fails
# in a clone that belongs to somebody else.
GOBUILD  = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X github.com/lictor-ha/lictor/cmd/lictor/commands.version=$(VERSION)'
# agent/postgres runs, breaks and rewinds whole clusters of PostgreSQL.
UNIT     = $(GO) list ./... | grep -v '/e2e\(/\|$$\)\|/agent/postgres$$\|/agent/simulation$$'
# Tests are built without what nobody looks at: vet has a target (lint-lite), and a debugger is not used.
QUICK    = -vet=off -ldflags=-w
# What end-to-end tests run. (A plain `export X=$$(command)` would lose the command's exit status.)
PROGRAMS = consul=$$(e2e/tools/consul.sh) && export CONSUL_BIN=$$consul LICTOR_BIN=$(CURDIR)/bin/lictor
# Where tests keep their files. (GOTMPDIR would have t.TempDir elsewhere than os.TempDir.)
SCRATCH  = unset GOTMPDIR && export TMPDIR=$$(e2e/tools/scratch.sh)
# How long all end-to-end tests of one package may take.
E2E_TIMEOUT ?= 45m
# Of `make soak`: how many simulated schedules, from which seed on; of `make lab`:
# names of faults (all), and how many rounds of them by chance (each one once).
SEEDS   ?= 50000
SEED    ?=
FAULTS  ?=
ROUNDS  ?=
# Of `make fuzz`: how long each target runs; ONLY=regexp: those whose name matches.
FUZZTIME ?= 2m
# Of `make test-web`: where pictures of the page are kept.
PICTURES ?=
# Of `make test-versions`: the Debian release whose versions are used.
DEBIAN  ?= trixie

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | column -t -s $$'\t'

.PHONY: build
build: ## bin/lictor
	@mkdir -p bin
	$(GOBUILD) -o bin/lictor ./cmd/lictor

.PHONY: deps
deps: ## install the Debian packages that demo and tests need (as root), build Consul
	@e2e/tools/deps.sh test
	@e2e/tools/consul.sh

.PHONY: demo
demo: ## a sharded cluster on this machine; options in ARGS, e.g. ARGS="--once --report FILE"
	@e2e/tools/deps.sh demo
	@$(MAKE) build && $(GO) build -buildvcs=false -o bin/demo ./e2e/demo/cmd/demo && $(PROGRAMS) && exec bin/demo $(ARGS)

.PHONY: test
test: ## everything CI runs: format, vet, unit and end-to-end tests
	@e2e/tools/deps.sh test
	@$(MAKE) lint-lite
	@$(MAKE) test-unit
	@$(MAKE) test-e2e

.PHONY: test-unit
test-unit: ## tests of single packages with the race detector, without other programs; and a part of the simulator's
	@consul=$$(e2e/tools/consul.sh) && export CONSUL_BIN=$$consul && $(SCRATCH) && packages=$$($(UNIT)) && failed=; \
		$(GO) test $(QUICK) -short -timeout 15m ./agent/simulation & simulator=$$!; \
		$(GO) test $(QUICK) -race -short -timeout 15m $$packages || failed=1; \
		wait $$simulator || failed=1; \
		[ -z "$$failed" ]

# Guards and whole bouncers with the race detector, then the whole simulator, beside the rest. Two packages
# at a time of each, the longest first: they build whole clusters, and mostly wait
# for what happens there. None of them says anything about how fast that is.
.PHONY: test-e2e
test-e2e: build ## tests with real Consul, PostgreSQL, PgBouncer and HAProxy
	@$(PROGRAMS) && $(SCRATCH) && packages=$$($(GO) list ./e2e/... | grep -v '/e2e$$\|/e2e/vm\(/\|$$\)') && failed=; \
		{ beside=0; $(GO) test $(QUICK) -race -timeout 15m ./bouncer/... ./agent/fence || beside=1; \
			$(GO) test $(QUICK) -timeout 30m ./agent/simulation || beside=1; exit $$beside; } & beside=$$!; \
		$(GO) test $(QUICK) -p 2 -timeout $(E2E_TIMEOUT) ./e2e ./agent/postgres $$packages || failed=1; \
		wait $$beside || failed=1; \
		[ -z "$$failed" ]

.PHONY: test-watchdog
test-watchdog: build ## the watchdog in virtual machines: softdog and i6300esb, a real agent and PostgreSQL
	@e2e/tools/deps.sh test
	@$(PROGRAMS) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -v ./e2e/vm

# The part of it that is short is in `make test`, too. It writes some 10 GB into $$TMPDIR.
.PHONY: test-backup
test-backup: build ## shards backed up by the real pgBackRest (as root): replicas, point-in-time recovery, a repository that fails; the figures of --delta
	@e2e/tools/deps.sh test
	@$(PROGRAMS) LICTOR_TEST_BACKUP=1 && $(SCRATCH) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -v ./e2e/backup

.PHONY: browser
browser: ## what the tests of the fleet page need (as root): Debian's Chromium, node, and playwright-core in a cache outside the tree
	@e2e/tools/deps.sh browser
	@e2e/tools/browser.sh

.PHONY: test-web
test-web: build browser ## the fleet page's figures with 1,000 shards, also in a real Chromium; on a quiet machine. PICTURES=DIR keeps what it looks like
	@$(PROGRAMS) LICTOR_TEST_FIGURES=1 LICTOR_TEST_PICTURES=$(PICTURES) && $(SCRATCH) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -v ./e2e/web

.PHONY: test-evacuate
test-evacuate: build ## 24 shards on 6 hosts (as root; 72 PostgreSQL): leaders are spread, one host is evacuated under clients, and put back
	@e2e/tools/deps.sh test
	@$(PROGRAMS) LICTOR_TEST_EVACUATE=1 && $(SCRATCH) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -v -run 'TestEvacuate' ./e2e/cli

.PHONY: test-ansible
test-ansible: ## the Ansible collection and the packages on systemd hosts (as root); lint
	@e2e/tools/deps.sh ansible
	@consul=$$(e2e/tools/consul.sh) && export CONSUL_BIN=$$consul LICTOR_TEST_ANSIBLE=1 && \
		$(GO) test -count 1 -timeout 120m -v ./e2e/ansible

# The binaries are Debian DEBIAN's, unpacked outside the tree (some 250 MB in
# /var/cache/lictor, a minute or two the first time); what it does not bring is this
# machine's. Some nine minutes.
.PHONY: test-versions
test-versions: build ## tests with another Debian's versions (as root): DEBIAN=trixie (PostgreSQL 17, PgBouncer 1.24, Patroni 4.0), sid (18, 1.26, 4.1) or bullseye (PostgreSQL 13)
	@e2e/tools/deps.sh versions
	@$(PROGRAMS) && dir=$$(e2e/tools/versions.sh $(DEBIAN)) && \
		export PATH=$$dir/programs:$$PATH && \
		export POSTGRES_BIN=$$(echo $$dir/usr/lib/postgresql/*/bin) && \
		$$POSTGRES_BIN/postgres --version && pgbackrest version && pgbouncer --version | sed -n 1p && patronictl version && \
		$(GO) test -p 1 -count 1 -timeout $(E2E_TIMEOUT) ./agent/postgres ./agent/fence ./bouncer/... ./e2e/bouncer $(if $(filter bullseye,$(DEBIAN)),,./e2e/clients) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -run '^(TestShard|TestDivergedPrimaryIsRewound|TestFailoverSlot)$$' ./e2e

.PHONY: test-upgrade
test-upgrade: build ## major upgrades: checked, of the data (PostgreSQL 15 to 17, 13 to 15, 13 to 17), and of a shard under clients (as root)
	@e2e/tools/deps.sh versions
	@old=$$(echo $$(e2e/tools/versions.sh bullseye)/usr/lib/postgresql/*/bin) && new=$$(echo $$(e2e/tools/versions.sh trixie)/usr/lib/postgresql/*/bin) && \
		own=$$(echo /usr/lib/postgresql/15/bin) && $(GO) test -c -o bin/postgres.test ./agent/postgres && cd agent/postgres && \
		for pair in "$$own $$new" "$$old $$own" "$$old $$new"; do \
			POSTGRES_BIN=$${pair% *} POSTGRES_NEXT_BIN=$${pair#* } ../../bin/postgres.test -test.run 'UpgradeCheck|UpgradeData|Superseded' -test.v || exit 1; \
		done
	@$(PROGRAMS) && export POSTGRES_BIN=/usr/lib/postgresql/15/bin && export POSTGRES_NEXT_BIN=$$(echo $$(e2e/tools/versions.sh trixie)/usr/lib/postgresql/*/bin) && \
		$(GO) test -count 1 -timeout $(E2E_TIMEOUT) -v -run '^(TestUpgrade|TestUpgradeCutShort)$$' ./e2e

.PHONY: packages
packages: ## dist/: .deb and .rpm for linux amd64 and arm64, bills of materials, checksums
	@GO=$(GO) packages/build.sh '$(VERSION)' dist

.PHONY: images
images: ## dist/: container images of agent and bouncer from a Debian root file system (as root; buildah, mmdebstrap)
	@GO=$(GO) packages/images.sh '$(VERSION)' dist

.PHONY: lint-lite
lint-lite: ## gofmt and go vet
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go' 2>/dev/null | grep . || find . -name '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not gofmt-ed:" $$unformatted >&2; exit 1; fi
	@$(GO) vet ./...

.PHONY: lint
lint: lint-lite ## all linters: gofumpt, staticcheck, golangci-lint; govulncheck where its database is reachable
	@bin=$$(e2e/tools/lint.sh) && \
		unformatted=$$($$bin/gofumpt -l agent bouncer cmd e2e) && \
		if [ -n "$$unformatted" ]; then echo "not gofumpt-ed:" $$unformatted >&2; exit 1; fi && \
		$$bin/staticcheck ./... && \
		$$bin/golangci-lint run ./...
	@e2e/tools/vuln.sh ./...

.PHONY: bench
bench: build ## measure against the figures; writes docs/benchmarks.md and, with REPORT=FILE, JSON; ONLY=bouncer: the bouncer's alone
	@e2e/tools/deps.sh test
	@$(PROGRAMS) && \
		$(GO) run ./e2e/bench $(if $(ONLY),-only $(ONLY),-markdown docs/benchmarks.md) $(addprefix -report ,$(REPORT)) $(ARGS)

.PHONY: soak
soak: ## SEEDS (50000) simulated schedules on all cores, from the seed SEED on
	@$(GO) test -count 1 -timeout 0 -v -run TestRandomSchedules ./agent/simulation -sim.seeds $(SEEDS) $(addprefix -sim.first ,$(SEED)) $(ARGS)

.PHONY: mutants
mutants: ## change agent/ha (ARGS="-core agent/member": that) in one place after the other, and print which test notices; ONLY=regexp; ARGS="-seeds 300": the simulator, too, where the tables do not
	@$(GO) run ./e2e/mutants/cmd/mutants $(if $(ONLY),-only '$(ONLY)') $(ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (2m); ONLY=regexp. Their seeds run in the unit tests
	@e2e/tools/fuzz.sh '$(FUZZTIME)' $(if $(ONLY),'$(ONLY)')

.PHONY: lab
lab: build ## real faults on a real shard: FAULTS=a,b ROUNDS=n SEED=n REPORT=FILE; ARGS=-list names them
	@e2e/tools/deps.sh test
	@$(PROGRAMS) && \
		$(GO) run ./e2e/faults/cmd/lab $(addprefix -faults ,$(FAULTS)) $(addprefix -rounds ,$(ROUNDS)) $(addprefix -seed ,$(SEED)) \
			$(addprefix -report ,$(REPORT)) $(ARGS)

.PHONY: docs
docs: ## docs/settings.md and docs/cli from the code
	@$(GO) run ./e2e/docs/cmd/settings
	@$(GO) run ./e2e/docs/cmd/cli

.PHONY: clean
clean: ## remove what the build made (the caches outside the tree stay)
	rm -rf bin dist
