# The contract between people, CI and this repository. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
COVER   := coverage.out
LINT    := bin/golangci-lint

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/k3s-autoscaler
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/k3s-autoscaler ./cmd/k3s-autoscaler

.PHONY: demo
demo: ## Watch the main job on a simulated world, about a minute; needs nothing but Go
	go run -ldflags '$(LDFLAGS)' ./cmd/k3s-autoscaler demo

.PHONY: test
test: unit race chaos env-test fit e2e ## Everything that CI runs: unit tests with coverage, the race detector, faults on real processes, end-to-end

.PHONY: unit
unit: ## Unit tests and coverage; needs no daemon
	@echo "== unit tests (no daemon needed)"
	go test -timeout 20m -coverprofile=$(COVER) -coverpkg=./events/...,./bus/...,./alerting/...,./handlers/...,./internal/... ./...
	go run ./test/cover -profile $(COVER)

.PHONY: race
race: ## Unit tests under the race detector
	@echo "== race detector"
	@# Not the schedules of faults: the detector makes processes ten times slower,
	@# but not the times of the protocol.
	@# One package at a time, for the same reason.
	go test -race -p 1 -timeout 30m -skip '^TestChaos' ./...

# `go test ./bus` itself runs none of them but those that catch broken rules.
.PHONY: chaos
chaos: ## 40 fresh schedules of faults (killed, frozen, cut off …) on real processes, at most 8 minutes
	@echo "== faults on real processes; the last results are in docs/soak.md"
	CHAOS_SCHEDULES=40 go test -count=1 -timeout 15m -v -run 'ChaosLoses' ./bus | grep --line-buffered -v -e '^=== '

# Packages with tests on real parts. They share one cluster, so one at a time.
# ./test/fit/live has control planes of its own.
E2E := ./test/e2e/... ./internal/provider/docker/... ./internal/collector/... ./internal/kube/... ./alerting/... ./test/fit/live

.PHONY: e2e
e2e: ## The main job on a real API server, Docker, Prometheus and JetStream (builds and starts them)
	@echo "== end-to-end: builds what is missing (about 10 minutes the first time, then cached), as root on Debian"
	go run ./test/env/cmd/testenv build
	go test -tags e2e -count=1 -timeout 20m -v ./test/env
	go run ./test/env/cmd/testenv up >/dev/null
	@trap 'go run ./test/env/cmd/testenv down' EXIT; go test -tags e2e -count=1 -p 1 -timeout 50m -v $(E2E)

.PHONY: e2e-k3s
e2e-k3s: ## The same against the true rancher/k3s, where its image can be pulled; says whether it ran
	K3S_AUTOSCALER_E2E_K3S=1 go run ./test/env/cmd/testenv up >/dev/null
	@trap 'K3S_AUTOSCALER_E2E_K3S=1 go run ./test/env/cmd/testenv down' EXIT; \
	  K3S_AUTOSCALER_E2E_K3S=1 go test -tags e2e -count=1 -p 1 -timeout 50m -v ./test/e2e/...

.PHONY: env-test
env-test: ## Unit tests of the test environment's own modules
	cd test/env/runcshim && GOWORK=off go test ./...
	cd test/env/k8s && GOWORK=off CGO_ENABLED=0 go test ./agent/...

.PHONY: fit
fit: ## The fit simulation against the scheduler's own framework on 2,000 random clusters; FIT_SEED and FIT_CASES choose others
	@echo "== fit simulation against kube-scheduler's framework (the first build takes minutes)"
	go test -tags fit -count=1 -timeout 30m -v ./test/fit

.PHONY: fit-live
fit-live: ## The fit simulation against a real kube-scheduler: 150 decisions (FIT_CASES) and 50 removals (FIT_REMOVALS); part of e2e
	go run ./test/env/cmd/testenv build
	go test -tags e2e -count=1 -timeout 6h -v ./test/fit/live

.PHONY: soak
soak: ## Repeat what depends on chance, with a report in docs/soak.md: schedules of faults, properties of decisions and snapshots, decisions and removals by a real scheduler, 500 steps of a random walk
	CHAOS_SCHEDULES=200 CHAOS_PRODUCTION=10 CHAOS_REPORT=$(CURDIR)/docs/soak.md CHAOS_COMMIT=$(VERSION) \
	  go test -count=1 -timeout 3h -v -run 'ChaosLoses' ./bus | grep --line-buffered -v -e '^=== '
	go test -count=25 -timeout 60m -run 'Processes|Frozen|Killed' ./bus
	go test -count=1 -timeout 60m -v ./internal/scaling ./events -rapid.checks=10000 | grep --line-buffered -e evaluations -e 'rapid' -e '^ok' -e FAIL
	FIT_CASES=2000 FIT_REMOVALS=500 $(MAKE) fit-live
	go run ./test/env/cmd/testenv build
	WALK_STEPS=500 go test -tags e2e -count=1 -timeout 2h -v -run RandomWalk ./test/e2e

.PHONY: bench
bench: ## Measure every promised figure (median of 5) beside its target, about 40 minutes; needs what e2e needs; exit 1 on a clear miss
	go run ./test/bench -out docs/benchmarks.md

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' . | grep -v '^./test/env/'); do \
	  for t in $$(grep -hoE '^func (Fuzz[A-Za-z0-9_]+)' $$f | awk '{print $$2}'); do \
	    echo "== $$t in $$(dirname $$f)"; go test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) "$$(dirname $$f)"; done; done

$(LINT): internal/tools/go.mod internal/tools/go.sum
	@echo "== building golangci-lint (once, a few minutes)"
	@mkdir -p bin
	cd internal/tools && go build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: lint
lint: $(LINT) ## Static checks and the import rules of the layout
	$(LINT) run ./...

.PHONY: generate
generate: ## Regenerate the schemas and references under docs/reference, and docs/explanations.md
	go run ./internal/docgen -out docs/reference -explanations docs/explanations.md

.PHONY: proto
proto: ## Regenerate the Go code of protocol definitions
	cd internal/tools/proto && go run .

.PHONY: verify
verify: lint ## lint, and generated files, formatting and go.mod are as committed
	$(MAKE) generate
	go mod tidy -diff
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "run gofmt on:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@git diff --exit-code -- docs/reference docs/explanations.md || { echo "make generate changed the files above: commit them"; exit 1; }

.PHONY: up down
up: ## Start the test environment for work by hand
	go run ./test/env/cmd/testenv up
down: ## End it
	go run ./test/env/cmd/testenv down
