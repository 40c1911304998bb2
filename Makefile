# The one way in: people, README and CI use these targets. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# First, so that a Rust which `make setup` has just installed is found.
export PATH := $(CARGO_BIN):$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
COMPUTEPOOL := $(TARGET)/release/computepool

# make up MODEL=<folder or .gguf> [SHARDS=3] [API=127.0.0.1:8080] [STATE=.state]
MODEL ?=
SHARDS ?= 2
API ?= 127.0.0.1:8080
STATE ?= .state
# PAY=1: requests are paid, on a local chain that is started with the cluster.
PAY ?=
# Further words for bench, soak, parity and interop.
ARGS ?=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: ## install the system packages that are missing (YES=1 also installs Rust)
	@YES='$(YES)' scripts/setup.sh

# Node and npm's packages: contracts, the local chain, foreign clients.
.PHONY: packages
packages: setup
	@YES='$(YES)' scripts/setup.sh node
	@contracts/tools/packages.sh

.PHONY: build
build: setup ## optimised computepool and pool-shard
	cargo build --release --locked -p computepool -p pool-shard

.PHONY: demo
demo: build packages ## an orchestrator, two nodes, a local chain: real answers, paid by the second
	@$(COMPUTEPOOL) demo

.PHONY: up
up: build $(if $(PAY),packages) ## serve MODEL=<folder or .gguf> over SHARDS=n shards until `make down`
	@if [[ -z '$(MODEL)' ]]; then echo 'Say which model to serve: make up MODEL=<folder or .gguf> SHARDS=3' >&2; exit 2; fi
	@$(COMPUTEPOOL) up --model '$(MODEL)' --shards '$(SHARDS)' --api '$(API)' --state '$(STATE)' $(if $(PAY),--pay) --detach

.PHONY: down
down: ## stop what `make up` started
	@if [[ ! -x $(COMPUTEPOOL) ]]; then echo 'Nothing was built here, so nothing runs.'; else $(COMPUTEPOOL) down --state '$(STATE)'; fi

# What stands for an owner's desktop in tests.
.PHONY: desktop
desktop: setup
	@YES='$(YES)' scripts/setup.sh test

.PHONY: test
test: packages desktop ## everything: unit, property, architecture, contract, end-to-end, documentation and client tests
	contracts/test.sh
	cargo build --workspace --bins --tests --locked
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo 'cargo nextest run --workspace --locked'; cargo nextest run --workspace --locked; \
	else \
		echo 'cargo test --workspace --bins --lib --tests --locked'; cargo test --workspace --bins --lib --tests --locked; \
	fi
	cargo test --workspace --doc --locked
	scripts/clients/run.sh
	scripts/payments/run.sh

.PHONY: lint
lint: ## formatting, clippy, shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v shellcheck >/dev/null; then git ls-files -z '*.sh' '.ci/run' | xargs -0 -r shellcheck -x; \
	else echo 'shellcheck is not installed: shell scripts were not checked'; fi

.PHONY: docs
docs: ## the crates' documentation, warnings refused
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked

.PHONY: bench
bench: build packages ## the figures of docs/benchmarks.md, as a table and JSON
	cargo build --release --locked -p computepool -p pool-shard -p pool-link --bins --example hop
	@$(COMPUTEPOOL) bench $(ARGS)
	@scripts/payments/bench.sh

.PHONY: contracts
contracts: packages ## the contracts' tests on the real Superfluid (SOAK=1: many more random cases)
	contracts/test.sh $(ARGS)

.PHONY: soak
soak: build packages ## ten minutes of mixed requests with random cancels; then 200 paid sessions and 200 kills
	@$(call script,soak)
	cargo build --locked -p computepool -p pool-shard --bins
	COMPUTEPOOL_SESSIONS=200 cargo test --locked -p computepool --test money_books -- --nocapture
	COMPUTEPOOL_KILLS=200 cargo test --locked -p computepool --test money_crash -- --nocapture

.PHONY: fuzz
fuzz: setup ## a minute of fuzzing for each reader of strangers' bytes (ARGS='600 gguf': other times, some of them)
	@$(call script,fuzz)

.PHONY: check-windows
check-windows: setup ## node and shard compile for Windows; tests under wine (needs mingw and wine)
	@scripts/windows/run.sh

.PHONY: parity
parity: setup ## compare with transformers, live
	@$(call script,parity)

.PHONY: interop
interop: packages ## our links against aiortc and node-datachannel
	@$(call script,interop)

script = if [[ -x scripts/$(1)/run.sh ]]; then scripts/$(1)/run.sh $(ARGS); else echo 'scripts/$(1)/run.sh is not in this checkout yet' >&2; exit 1; fi
