# The verbs of this project. `make demo` and `make test` need nothing installed before them.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin

.PHONY: help setup demo serve test fuzz soak check fmt bench bench-proxy wheel

FUZZ_S ?= 600

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install what is missing: system packages (apt, as root) and Python packages (.venv)
	@scripts/setup

demo: setup ## create a VM, put it to sleep, wake it with a request; DEMO_ARGS=--once ends by itself
	@$(BIN)/hatchvm demo $(DEMO_ARGS)

serve: setup ## run the daemon with the environment's HATCH_* settings
	@$(BIN)/hatchvm serve

test: setup ## the whole suite, real VMs included; ARGS=... goes to pytest
	@scripts/test-servers
	@$(BIN)/hatchvm image build tiny
	@$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

fuzz: setup ## hunt for requests that the proxy and h11 read differently; FUZZ_S=600 seconds
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/uv pip install -q --system-certs --python $(BIN)/python atheris==3.0.0
	@$(BIN)/python tests/fuzz/hunt.py $(FUZZ_S) build/fuzz

soak: setup ## what takes too long for every change: a Debian guest, fifty VMs on a bridge, hours asleep; an hour, as root
	@scripts/test-servers all
	@$(BIN)/hatchvm image build tiny
	@HATCH_SOAK=1 $(BIN)/pytest tests/soak tests/integration/test_s3_storm.py tests/integration/clients $(ARGS)

check: setup ## lint, types, architecture
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python scripts/sizes.py
	@$(BIN)/python scripts/conformance_table.py --check

fmt: setup ## format and mend what can be mended
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

wheel: setup ## build dist/*.whl with the proxy's core compiled; needs a C compiler
	@HATCH_BUILD_HOOKS_ENABLE=1 $(BIN)/uv build -q --system-certs --python $(BIN)/python -o dist .

bench: setup ## measure the promises: boot, pause, wake, what snapshots cost, waking from S3, SSH
	@scripts/test-servers all
	@$(BIN)/python -m bench

bench-proxy: setup ## measure the proxy against nginx; ARGS=--all: and HAProxy, Caddy, Envoy, Traefik; ARGS=--help
	@scripts/bench-peers
	@$(BIN)/python -m bench.proxy $(ARGS)
