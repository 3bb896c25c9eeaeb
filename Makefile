# What a person types. Everything real happens in the programs that it calls.
SHELL := /bin/bash
CARGO ?= cargo
CACHE := $(or $(GRAVITY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gravity)
BIN := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/release

.PHONY: demo demo-clean test unit e2e long masters quorum faults crash power distributions vm vm-power vm-vagrant fuzz lint base binaries bench setup help

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what building and testing needs (Debian and Ubuntu)
	@./tests/setup.sh

binaries: ## compile gravity, tele and the test tools
	$(CARGO) build --release -p gravity -p tele -p gravity-planet-init -p gravity-helm-shim -p gravity-planet-base -p gravity-tests

base: setup binaries ## build Kubernetes and all other components into the local Hub, once
	$(BIN)/make-base --gravity $(BIN)/gravity

demo: base ## build a sample cluster image and install it into a throwaway node
	$(BIN)/testnode demo

demo-clean: ## remove the demo's node
	$(BIN)/testnode delete demo

lint: ## formatting, clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

unit: ## tests that need neither root nor a base image
	$(CARGO) test --workspace --exclude gravity-tests
	$(CARGO) test -p gravity-tests --lib

e2e: base ## tests on nodes in namespaces; needs root
	@./tests/setup.sh vagrant
	$(CARGO) test -p gravity-tests --test node --test sources --test vagrant
	GRAVITY_TELE=$(abspath $(BIN))/tele $(CARGO) test -p gravity-tests --test hub --test builds
	$(BIN)/make-base --gravity $(BIN)/gravity --programs $(CACHE)/programs
	GRAVITY_TEST_BIN=$(CACHE)/programs $(CARGO) test -p gravity-cluster --test api
	$(BIN)/testnode e2e
	$(BIN)/testnode crash --shard 3/60
	$(BIN)/testnode crash --nodes --at 3 --only "join of a worker: kill operation and agent"
	$(BIN)/testnode faults --only refusals --only agreement --only abort --only lost-terminal
	$(BIN)/testnode checks
	$(BIN)/testnode hosts
	$(BIN)/testnode peers
	$(BIN)/testnode join
	$(BIN)/testnode masters
	$(BIN)/testnode profiles
	$(BIN)/testnode hooks
	$(BIN)/testnode network
	$(BIN)/testnode page
	$(BIN)/testnode care
	$(BIN)/testnode offline
	$(BIN)/testnode vm checks

long: base ## what make test has no time for: five nodes, a leave that is killed, power cuts; needs root
	$(BIN)/testnode page --five-nodes
	$(BIN)/testnode crash --nodes --at 3 --only "leave of a worker: kill the operation"
	$(BIN)/testnode crash --power --cuts 1

masters: base ## three masters and a worker: one dies, is removed, another one joins; needs root
	$(BIN)/testnode masters

quorum: base ## each of three masters killed and cut off, one frozen, two lost for good; needs root
	$(BIN)/testnode quorum

faults: base ## kills, full disks, bad input, on a node in a namespace; needs root
	$(BIN)/testnode faults

SHARD ?= 1/1
crash: base ## kills and broken disks at every step of installs and joins, SHARD=1/8 for a part; needs root
	$(BIN)/testnode crash --shard $(SHARD)
	$(BIN)/testnode crash --nodes --shard $(SHARD)

CUTS ?= 20
power: base ## power cuts at random moments of installs, of a running cluster, of joins, CUTS=5 for less; needs root
	$(BIN)/testnode crash --power --cuts $(CUTS)

distributions: base ## the sample on Debian 11, 12 and 13; needs root
	$(BIN)/testnode distributions

vm: base ## what needs systemd, a kernel or disks of its own, in virtual machines; needs root
	$(CARGO) test -p gravity-tests --test vm
	$(BIN)/testnode vm checks
	$(BIN)/testnode vm install
	$(BIN)/testnode vm install --debian trixie
	$(BIN)/testnode vm cluster
	$(BIN)/testnode vm masters
	$(BIN)/testnode vm wireguard
	$(BIN)/testnode vm troubles
	$(BIN)/testnode vm power

vm-power: base ## power cuts of virtual machines, CUTS=5 for less, ONLY=install, running or join; needs root
	$(BIN)/testnode vm power --cuts $(CUTS) $(if $(ONLY),--only $(ONLY))

vm-vagrant: base ## vagrant/, with libvirt in namespaces; needs root, up to 35 minutes
	@./tests/setup.sh libvirt
	$(BIN)/testnode vm vagrant

test: setup lint unit e2e ## everything that must pass

# What cargo-fuzz does, without its nightly compiler.
SECONDS_EACH ?= 60
COVERAGE = --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,\
	level=4 inline-8bit-counters pc-table trace-compares)
fuzz: setup ## what comes from outside, made up at random; SECONDS_EACH=600 for longer
	cd fuzz && RUSTFLAGS="$(COVERAGE)" $(CARGO) build --release \
		--target x86_64-unknown-linux-gnu --target-dir $(CACHE)/fuzz
	for target in manifest image index documents layer; do \
		mkdir -p $(CACHE)/fuzz/corpus/$$target && \
		$(CACHE)/fuzz/x86_64-unknown-linux-gnu/release/$$target -max_total_time=$(SECONDS_EACH) \
			-timeout=10 -rss_limit_mb=2048 -artifact_prefix=fuzz/$$target- \
			$(CACHE)/fuzz/corpus/$$target fuzz/corpus/$$target || exit 1; \
	done

bench: base ## ratios against peers, measured in one run
	$(BIN)/make-base --kubeadm $(CACHE)/kubeadm
	$(BIN)/testnode bench --kubeadm $(CACHE)/kubeadm/kubeadm
