# The targets are the workflow: `make` lists them.

HERALD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/herald
# What the end-to-end tests run beside Herald.
HERALD_PYTHON = $(HERALD_CACHE)/python/bin/python
# What the chart is rendered with.
HERALD_HELM ?= $(HERALD_CACHE)/cluster/bin/helm
export HERALD_CACHE HERALD_PYTHON HERALD_HELM
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
test: fetch lint docs test-unit test-e2e test-image ## Everything a change has to pass.

# What the cluster is built from comes in the background, while the processor is busy with something else.
.PHONY: fetch
fetch:
	@{ scripts/need cluster-sources >/dev/null 2>&1 & }

# With every feature, so that what the tests of one part built serves the next.
ALL = -p herald-dispatcher -p herald-operator -p herald-e2e --all-features --bins

.PHONY: test-unit
test-unit: ## The tests of every crate: the contract suites on SQLite and PostgreSQL, on the embedded queue and Pulsar; the chart.
	@scripts/need cargo protoc pulsar postgresql kubernetes lua
	cargo test --workspace --all-features
	lua5.1 docs/gitops/argocd/check.lua

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
	@scripts/need cargo protoc pulsar postgresql faketime smtp-sink python kubernetes argocd
	cargo build $(ALL)
	$(TARGET)/debug/herald-e2e run embedded --small
	$(TARGET)/debug/herald-e2e run faults
	$(TARGET)/debug/herald-e2e run soak --small
	$(TARGET)/debug/herald-e2e run scaling --small
	$(TARGET)/debug/herald-e2e run servers --small
	$(TARGET)/debug/herald-e2e run kubernetes --small

.PHONY: test-image
test-image: ## The container image, built by buildah as the Dockerfile says, without an engine and a registry; looked into, and run.
	@scripts/need cargo protoc buildah
	cargo build $(ALL)
	$(TARGET)/debug/herald-e2e run image

.PHONY: e2e
e2e: ## A real Kubernetes, with Pulsar and PostgreSQL or Argo CD beside it; ONLY=name runs one part of it, ONLY=quickstart the tutorial.
	@scripts/need cargo protoc pulsar postgresql python kubernetes argocd
	cargo build $(ALL)
	$(TARGET)/debug/herald-e2e run kubernetes --small $(if $(ONLY),--only $(ONLY))

.PHONY: soak
soak: ## What takes too long for every change, built for release: the scenarios in full size, and the broker killed ten times under load.
	@scripts/need cargo protoc pulsar postgresql faketime smtp-sink python kubernetes
	cargo build --release $(ALL)
	$(TARGET)/release/herald-e2e run embedded
	$(TARGET)/release/herald-e2e run scaling
	$(TARGET)/release/herald-e2e run servers
	$(TARGET)/release/herald-e2e run soak
	$(TARGET)/release/herald-e2e run kubernetes --only size
	cargo test -p herald-e2e --features pulsar --test pulsar -- --ignored --nocapture

.PHONY: lint
lint: ## Format, clippy, and the dependencies' licences, sources and duplicates.
	@scripts/need cargo cargo-deny protoc
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	$(HERALD_CACHE)/tools/bin/cargo-deny --log-level error check bans licenses sources

.PHONY: lint-chart
lint-chart: ## The chart: linted and rendered with every file of values in ci/, what it makes checked; Argo CD's health checks.
	@scripts/need cargo protoc kubernetes lua
	cargo test -p herald-e2e --features chart --test chart
	lua5.1 docs/gitops/argocd/check.lua

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
