# The targets are the workflow: `make` lists them.

HERALD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/herald
# What the end-to-end tests run beside Herald.
HERALD_PYTHON = $(HERALD_CACHE)/python/bin/python
export HERALD_CACHE HERALD_PYTHON
# Both programs are always built together: one by one, Cargo would build their dependencies with other features.
TARGET := $(or $(CARGO_TARGET_DIR),target)
export PATH := $(PATH):/usr/sbin

.DEFAULT_GOAL := help

.PHONY: help
help: ## Lists these targets.
	@echo 'make TARGET, with TARGET one of'
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: run
run: ## Starts Herald with a mail server and a webhook receiver of its own, sends one of each kind, shows what arrives.
	@scripts/need cargo
	cargo build -p herald-dispatcher -p herald-e2e
	@$(TARGET)/debug/herald-e2e showcase $(ARGS)

.PHONY: test
test: lint docs test-unit test-e2e ## Everything a change has to pass.

# With every feature, so that what the tests of one part built serves the next.
ALL = -p herald-dispatcher -p herald-e2e --all-features --bins

.PHONY: test-unit
test-unit: ## The tests of every crate: the contract suites on SQLite and PostgreSQL, on the embedded queue and Pulsar.
	@scripts/need cargo protoc pulsar postgresql
	cargo test --workspace --all-features

.PHONY: test-pulsar
test-pulsar: ## Of these, the broker's contract suite, and what only shows when it breaks, against a real Pulsar.
	@scripts/need cargo protoc pulsar postgresql
	cargo test -p herald-e2e --features pulsar --test pulsar

.PHONY: test-postgres
test-postgres: ## Of these, the store's contract suite, and what only several gateways show, against a real PostgreSQL.
	@scripts/need cargo postgresql
	cargo test -p herald-dispatcher --features postgres --lib -- store::postgres

.PHONY: test-e2e
test-e2e: ## Herald as processes, killed on the way, against real servers: every scenario in its small size.
	@scripts/need cargo protoc pulsar postgresql faketime smtp-sink python
	cargo build $(ALL)
	$(TARGET)/debug/herald-e2e run embedded --small
	$(TARGET)/debug/herald-e2e run faults
	$(TARGET)/debug/herald-e2e run soak --small
	$(TARGET)/debug/herald-e2e run scaling --small
	$(TARGET)/debug/herald-e2e run servers --small

.PHONY: soak
soak: ## What takes too long for every change: the scenarios in full size, and the broker killed ten times under load.
	@scripts/need cargo protoc pulsar postgresql faketime smtp-sink python
	cargo build --release $(ALL)
	$(TARGET)/release/herald-e2e run embedded
	$(TARGET)/release/herald-e2e run scaling
	$(TARGET)/release/herald-e2e run servers
	$(TARGET)/release/herald-e2e run soak
	cargo test -p herald-e2e --features pulsar --test pulsar -- --ignored --nocapture

.PHONY: lint
lint: ## Format, clippy, and the dependencies' licences, sources and duplicates.
	@scripts/need cargo cargo-deny protoc
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	$(HERALD_CACHE)/tools/bin/cargo-deny --log-level error check bans licenses sources

.PHONY: docs
docs: ## The crates' documentation with private items, since it is for those who change them: target/doc.
	@scripts/need cargo protoc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --document-private-items

.PHONY: bench
bench: ## Measures, each figure beside its raw baseline, and writes docs/benchmarks.md.
	@scripts/need cargo protoc pulsar postgresql smtp-sink
	cargo build --release $(ALL)
	$(TARGET)/release/herald-e2e bench

.PHONY: clean
clean: ## Removes what was built, and the showcase's state.
	cargo clean
	rm -rf .herald crds/samples/quickstart/secrets
