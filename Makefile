# Everything a developer and the continuous integration need. `make` alone lists the targets.
# Every test run has a time limit. GOFLAGS of the environment are respected.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO            ?= go
VERSION       ?= devel
CACHE         := $(CURDIR)/.cache
GOLANGCI      := $(CACHE)/bin/golangci-lint
GOLANGCI_VERSION := v2.15.0
# Packages by the kind of their tests; what is not there yet is left out.
SIM_PACKAGES  := $(if $(wildcard sim/*_test.go),./sim/...)
E2E_PACKAGES  := ./cmd/lockstep $(if $(shell find test -name '*_test.go' 2>/dev/null),./test/...)
# Packages with tests that -short leaves out; ./cmd/lockstep, the demonstration, runs with the e2e tests.
LONG_PACKAGES := ./nbd ./control ./disk ./node ./store ./store/etcdstore
SEEDS         ?= 2000
SEED          ?=
# Seeds of the simulation of whole nodes, and the time after which no more of them is begun.
WHOLE_SEEDS   ?= 100
WHOLE_TIME    ?= 60s
FUZZTIME      ?= 10s
# What tests use, and the packages of Debian that have it.
TOOLS         := qemu-img qemu-io qemu-system-x86_64 fio nbdkit nbdinfo nbdcopy jq openstack mkfs.xfs mkfs.ext4 spin gcc qemu-storage-daemon strace ip
APT_PACKAGES  := qemu-utils qemu-system-x86 linux-image-cloud-amd64 fio nbdkit libnbd-bin jq python3-openstackclient xfsprogs e2fsprogs \
	spin gcc libc6-dev qemu-system-common strace iproute2

export CGO_ENABLED ?= 0

.PHONY: help build dev demo torture torture-mutants deps lint fmt unit long model sim sim-whole e2e failover-time soak test fuzz generate check clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 18

build: ## build bin/lockstep
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/lockstep ./cmd/lockstep

dev: build ## run a whole deployment of two zones in ./out/dev (DIR=… for another place)
	exec bin/lockstep dev --dir $(or $(DIR),out/dev)

demo: build ## kill a zone under load, fail over, prove that nothing was lost
	bin/lockstep demo

TIME ?= 10m
torture: build ## break a throw-away deployment for TIME (SEED=x for the same plan), prove that nothing was lost
	bin/lockstep torture --time $(TIME) $(if $(SEED),--seed $(SEED))

MUTANT_TIME ?= 3m
torture-mutants: ## show that torture sees: builds with a rule broken, each tortured until it is caught, MUTANT_TIME at most (MUTANT=regexp for some)
	$(GO) run ./cmd/lockstep/internal/torture/mutants -for $(MUTANT_TIME) $(if $(MUTANT),-run '$(MUTANT)') $(if $(SEED),-seed $(SEED))

deps: ## install what tests and lint need, if it is missing
	@export PATH="$$PATH:/usr/sbin:/sbin"; \
	absent() { { for tool in $(TOOLS); do command -v $$tool >/dev/null || echo $$tool; done; \
		compgen -G '/boot/vmlinuz-*-cloud-amd64' >/dev/null || echo linux-image-cloud-amd64; } | xargs; }; \
	missing=$$(absent); \
	if [[ -n "$$missing" ]]; then \
		echo "missing: $$missing"; \
		sudo=""; if [[ $$(id -u) -ne 0 ]]; then sudo="sudo -n"; fi; \
		if ! command -v apt-get >/dev/null; then echo "there is no apt-get"; \
		elif ! { $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT_PACKAGES) >/dev/null; }; then \
			echo "apt-get failed"; \
		fi; \
		missing=$$(absent); \
		if [[ -n "$$missing" ]]; then \
			echo "not installed: $$missing; tests that need these are skipped"; \
			if [[ "$${CI:-}" == true ]]; then echo "CI=true: nothing may be skipped"; exit 1; fi; \
		fi; \
	fi
	@$(MAKE) --no-print-directory $(GOLANGCI)

$(GOLANGCI):
	@mkdir -p $(dir $@)
	GOBIN=$(dir $@) GOFLAGS=-buildvcs=false $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

lint: $(GOLANGCI) ## golangci-lint with the rules of .golangci.yml
	GOLANGCI_LINT_CACHE=$(CACHE)/golangci-lint $(GOLANGCI) run --allow-parallel-runners --timeout 15m ./...

fmt: $(GOLANGCI) ## format all code
	$(GOLANGCI) fmt ./...

# The race detector needs cgo and a C compiler; without one the same tests run without it.
RACE := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)
UNIT_PACKAGES = $$($(GO) list ./... | grep -v -e /sim$$ -e /sim/ -e /test$$ -e /test/)

unit: ## unit tests, with the race detector, but for the longest
	CGO_ENABLED=$(if $(RACE),1,0) $(GO) test $(RACE) -short -tags invariants -timeout 5m $(UNIT_PACKAGES)

long: ## what unit leaves out because it takes longer
	$(GO) test -tags invariants -timeout 5m $(LONG_PACKAGES)

MODEL_SET ?= all
model: ## check the protocol's models with spin; MODEL_SET=ci for a few minutes' part of it
	model/run -s $(MODEL_SET) -j $$(nproc)

sim: ## simulation: SEEDS=n for so many runs, SEED=x to repeat one
ifneq ($(SIM_PACKAGES),)
	$(GO) test -tags invariants -timeout 10m -count=1 ./sim $(if $(SEED),-v -seed $(SEED),-seeds $(SEEDS))
	$(MAKE) --no-print-directory sim-whole
else
	@echo "no simulation in this tree"
endif

sim-whole: ## the simulation of real nodes and controllers: WHOLE_SEEDS=n runs, SEED=x to repeat one
	$(GO) build -o $(CACHE)/bin/simrun ./sim/whole/simrun
ifneq ($(SEED),)
	$(CACHE)/bin/simrun -seed $(SEED)
else
	$(GO) test ./sim/whole/simrun
	$(CACHE)/bin/simrun -run Scenario -seeds $(WHOLE_SEEDS) -for $(WHOLE_TIME)
endif

.PHONY: sim-whole-mutants
sim-whole-mutants: ## break engine and orchestration on purpose: each must be caught by some seed; MUTANT=text for some
	$(GO) build -o $(CACHE)/bin/simrun ./sim/whole/simrun
	$(CACHE)/bin/simrun -mutants '$(or $(MUTANT),all)'

# A binary of its own, with the checks of the tag. With E2E_BUILD=-race (and CGO_ENABLED=1) the tests
# find data races, too, and take twice as long.
E2E_BUILD     ?=
E2E_BIN       := $(CURDIR)/out/e2e/lockstep

e2e: e2e-bin ## end-to-end tests against real processes, the demonstration included
	LOCKSTEP_BIN=$(E2E_BIN) $(GO) test -tags invariants -timeout 30m -count=1 -p 1 -parallel 2 $(E2E_PACKAGES)

failover-time: build ## 20 rounds of losing a zone under load: median and maximum of the failover
	LOCKSTEP_BIN=$(CURDIR)/bin/lockstep $(GO) test ./test/e2e -run LosingAZone -v -count=1 -timeout 15m

BENCH = $(GO) run ./cmd/lockstep/internal/bench
.PHONY: bench bench-smoke
bench: build ## Lockstep beside QEMU's quorum, mirror and server and nbdkit: ratios, results.json and plots in out/bench (ARGS=… for some)
	$(BENCH) $(ARGS)

bench-smoke: build ## a short part of the benchmark, which must complete
	$(BENCH) -rounds 1 -runtime 1s -size 1 -workloads W1,W5 -parts load -out out/bench-smoke

BENCHSTAT = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
MICRO     = ./wire ./disk ./nbd ./replica
.PHONY: microbench
microbench: ## benchmarks of the write path's parts, six times each, as benchstat's table (OLD=a kept copy of out/bench/micro.txt to compare with)
	@mkdir -p out/bench
	$(GO) test -run '^$$' -bench . -benchmem -count $(or $(COUNT),6) -benchtime $(or $(BENCHTIME),200ms) $(MICRO) >out/bench/micro.txt || { cat out/bench/micro.txt; exit 1; }
	$(GO) run $(BENCHSTAT) $(OLD) out/bench/micro.txt

SOAK ?= 10m
soak: build ## random faults on real processes for SOAK
	LOCKSTEP_BIN=$(CURDIR)/bin/lockstep $(GO) test ./test/e2e -run AnySequence -random $(SOAK) -v -count=1 -timeout 0

# Faults of processes, network, disks and power. All need root, and end with a table of what was done.
FAULTS = LOCKSTEP_BIN=$(E2E_BIN) $(GO) test -tags invariants -count=1 -v -timeout 0
.PHONY: faults faults-long power e2e-bin
e2e-bin:
	$(GO) build -trimpath -tags invariants $(E2E_BUILD) -ldflags '-X main.version=$(VERSION)' -o $(E2E_BIN) ./cmd/lockstep

faults: e2e-bin ## a few rounds of every kind of fault on three sites in network namespaces
	$(FAULTS) ./test/faults $(SEED:%=-seed %) -kills 36 -partitions 19

ROUNDS ?= 500
faults-long: e2e-bin ## ROUNDS rounds of faults of processes, 2/5 as many of the network
	$(FAULTS) ./test/faults -run 'Killed|Partitions' $(SEED:%=-seed %) -kills $(ROUNDS) -partitions $$(( $(ROUNDS) * 2 / 5 ))

LOSSES ?= 20
power: e2e-bin ## LOSSES losses of power of nodes in virtual machines
	$(FAULTS) ./test/power $(SEED:%=-seed %) -losses $(LOSSES)

# One after the other, whatever -j says: they share the machine's cores.
test: ## everything: deps, lint, unit, long, model, sim, e2e, bench-smoke
	@for step in deps lint unit long model sim e2e bench-smoke; do $(MAKE) --no-print-directory MODEL_SET=ci $$step; done

fuzz: ## every fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -timeout 5m $$pkg; \
		done; \
	done

generate: ## write generated files anew
	$(GO) generate ./...

check: lint test generate ## lint, test, and generated files are up to date
	@git diff --exit-code -- . || { echo "generated files were not up to date"; exit 1; }
	@test -z "$$(git status --porcelain)" || { git status --short; echo "the tree is not clean"; exit 1; }

clean: ## remove what was built
	rm -rf bin out
