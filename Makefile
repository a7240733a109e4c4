# `make help` lists the commands. Each works on a fresh Debian 12 with a Rust toolchain, as root.

SHELL := /bin/bash
CARGO ?= cargo
# What the commands need from Debian; one list.
PACKAGES := ca-certificates e2fsprogs gcc iproute2 lld make nftables pkg-config busybox-static containerd python3-venv runc

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: packages
packages: # installs what is missing
	@missing=$$(for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing $$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

.PHONY: build
build: packages ## the release binary
	$(CARGO) build --release --package yare

.PHONY: run
run: build ## start a cluster in the foreground (ARGS: flags of yare server)
	@exec $$($(CARGO) metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release/yare server $(ARGS)

.PHONY: test
test: packages ## everything that CI checks
	scripts/test

.PHONY: bench
bench: packages ## the figures of the README, measured here
	scripts/bench

.PHONY: schema-check
schema-check: packages ## compare the schema tables with upstream's packages and golden fixtures
	$(CARGO) xtask schema-check
