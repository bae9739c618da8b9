# evworker: `make help` lists what there is. Needs Python 3.11 or newer, and a package index for pip.

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 4
BENCH ?= run
ARGS ?=
SEEDS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-embedded test-library test-long test-unit lint format wheel-test bench bench-quick coverage install services clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## an event's whole way, narrated; needs no server
	@$(BIN)/evworker demo $(ARGS)

test: $(VENV)/.installed-dev ## all tests, on every broker of EVWORKER_TEST_BROKER_URL (ARGS="-k retry")
	@found=$$($(BIN)/python -m tests.services --need broker,database,mysql) || exit 1; \
	set -a; eval "$$found"; set +a; \
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-embedded: $(VENV)/.installed-dev ## the tests that need no RabbitMQ of its own kind, on the embedded broker and SQLite
	EVWORKER_TEST_BROKER_URL=embedded \
	$(BIN)/python -m pytest -m "not database" --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-library: $(VENV)/.installed-dev ## what talks to a broker, on one, with EVWORKER_FAST_LANE=0: by aio-pika alone
	@found=$$($(BIN)/python -m tests.services --need broker,database,mysql) || exit 1; \
	set -a; eval "$$found"; EVWORKER_FAST_LANE=0; \
	EVWORKER_TEST_BROKER_URL="$${EVWORKER_TEST_BROKER_URL%%[ ,]*}"; set +a; \
	$(BIN)/python -m pytest -m broker --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-long: $(VENV)/.installed-dev ## the tests that have a longer form, in it: new seeds, long outages (SEEDS="7 8")
	@found=$$($(BIN)/python -m tests.services --need broker,database,mysql) || exit 1; \
	set -a; eval "$$found"; EVWORKER_TEST_SEEDS="$(SEEDS)"; EVWORKER_TEST_OUTAGE_S=10; \
	EVWORKER_TEST_ORDERS=20000; EVWORKER_TEST_ROWS=1000000; EVWORKER_TEST_SOAK_S=3600; set +a; \
	: "$${EVWORKER_TEST_SEEDS:=$$($(BIN)/python -c 'import random; print(*random.sample(range(10**6), 20))')}"; \
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -o faulthandler_timeout=5400 \
	  tests/workers/test_random_failures.py tests/workers/test_kill_switch.py \
	  tests/exactly_once tests/broker/outbox/test_plans.py tests/workers/test_full_load.py $(ARGS)

test-unit: $(VENV)/.installed-dev ## the tests that need no broker and no database server
	$(BIN)/python -m pytest -m "not broker and not database" $(ARGS)

lint: $(VENV)/.installed-dev ## style, formatting, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

format: $(VENV)/.installed-dev ## put the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-test: $(VENV)/.installed-dev ## build sdist and wheel, and use the wheel in a clean environment
	@$(BIN)/python -m tests.wheel

bench: $(VENV)/.installed-dev ## evworker and its peers side by side, 20-30 minutes; or BENCH=footprint, BENCH=relay, …
	@found=$$($(BIN)/python -m tests.services --need broker,database) || exit 1; \
	set -a; eval "$$found"; set +a; \
	$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

bench-quick: $(VENV)/.installed-dev ## the same with aio-pika and a client in C alone, in under two minutes
	@found=$$($(BIN)/python -m tests.services --need broker) || exit 1; \
	set -a; eval "$$found"; set +a; \
	$(BIN)/python -m benchmarks.run --quick $(ARGS)

coverage: $(VENV)/.installed-dev ## all tests in one process, and which lines they reach
	@found=$$($(BIN)/python -m tests.services --need broker,database,mysql) || exit 1; \
	set -a; eval "$$found"; set +a; \
	$(BIN)/coverage erase && $(BIN)/coverage run -m pytest $(ARGS); status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

install: $(VENV)/.installed-dev ## .venv with the project and its tools

services: ## print the URLs of broker and databases as the tests find them, starting what is missing
	@$(MAKE) --no-print-directory --silent $(BIN)/python
	@$(BIN)/python -m tests.services --need broker,database,mysql

clean: ## remove .venv and everything that was built or cached
	rm -rf $(VENV) benchmarks/.environments build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Stamps make a second run quick; a change of the dependencies renews it.

$(BIN)/python:
	@for python in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$python" --version)" >&2; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "evworker needs Python 3.11 or newer with its venv module (Debian: python3-venv), and found none; name one with PYTHON=..." >&2; \
	exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing evworker into $(VENV)" >&2
	@$(PIP_INSTALL) --editable '.[sqlite]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing evworker and its development tools into $(VENV)" >&2
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@
