# Everything that a person builds, tests or measures here. "make test" needs nothing but Go.
GO       ?= go
# How often each fuzz target runs. Go before 1.27 fails now and then at the end of a time: golang.org/issue/75804.
FUZZTIME ?= 200000x
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)

.PHONY: all build test lint bench microbench fuzz demo clean

all: lint test build

build: ## both binaries, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/harpd ./cmd/harp-agent

test: ## all tests; RACE=1 turns the race detector on
	$(GO) test $(if $(RACE),-race) -timeout 10m ./...

lint: ## gofmt, vet, staticcheck, and which package may import which
	.ci/lint

bench: ## what HARP costs beside plain Go proxies; BENCH='--tls', or what else harp-bench --help names
	$(GO) run ./cmd/harp-bench $(BENCH)

microbench: ## Go benchmarks of the parts, with allocations
	$(GO) test -run '^$$' -bench . -benchmem ./...

fuzz: ## every fuzz target, FUZZTIME each
	FUZZTIME=$(FUZZTIME) .ci/fuzz

demo: ## the whole system in one process, with a built-in page
	$(GO) run ./cmd/harpd dev

clean:
	rm -rf bin
