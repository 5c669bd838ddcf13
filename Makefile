# Thin on purpose: each target shows the command it runs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-cache-dir
ARGS ?=
SEED ?=
TASKS ?= 5000
CONCURRENCY ?= 2

# What `make run` asks, and of which files: the running Python's standard library.
QUESTION ?= how does asyncio cancel a task?
SOURCES ?= $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

# pip asks rustc for its version, and rustup's stand-in for that writes into the home folder unless told where to.
export RUSTUP_HOME ?= $(CURDIR)/.venv/rustup

.PHONY: help run test chaos hogs lint bench up down lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-6s %s\n", $$1, $$2 }'

run: .venv/installed ## answer QUESTION from the files under SOURCES (default: Python's standard library)
	$(BIN)/agentlink run research "$(SOURCES)" "$(QUESTION)" $(ARGS)

# What takes the machine to its limits runs alone.
test: .venv/installed-dev ## run the tests (ARGS=tests/unit: some of them)
	$(BIN)/python -m pytest $(or $(ARGS),-m "not chaos and not hogs")
	$(if $(ARGS),,$(BIN)/python -m pytest -n 0 -m "chaos or hogs")

chaos: .venv/installed-dev ## kill everything at random while TASKS tasks run (SEED=7: as that time)
	CHAOS_SEED=$(SEED) CHAOS_TASKS=$(TASKS) $(BIN)/python -m pytest -n 0 -s -m chaos $(ARGS)

hogs: .venv/installed-dev ## run greedy tasks and liars under limits, CONCURRENCY at a time (SEED=7: as that time)
	HOGS_SEED=$(SEED) HOGS_CONCURRENCY=$(CONCURRENCY) $(BIN)/python -m pytest -n 0 -s -m hogs $(ARGS)

lint: .venv/installed-dev ## style, types, import directions, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: .venv/installed-dev ## measure AgentLink against a plain process pool
	$(BIN)/python -m benchmarks $(ARGS)

up: .venv/installed ## start broker, worker and Flower in the foreground (ARGS=--detach: in the background)
	$(BIN)/agentlink up $(ARGS)

down: .venv/installed ## stop what `make up` started, with all data saved
	$(BIN)/agentlink down $(ARGS)

lock: .venv/installed-dev ## renew the locks from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --upgrade --extra build pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --constraint requirements.lock --extra build --extra dev pyproject.toml --output-file requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --upgrade benchmarks/dask.in --output-file benchmarks/dask.lock

clean: ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info

.venv/python: Makefile
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed; none was found on PATH" >&2; exit 1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); say 'make PYTHON=python3.11 …'" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed: .venv/python requirements.lock pyproject.toml
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
