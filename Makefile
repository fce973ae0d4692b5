# Every target makes the virtual environment by itself: needs Python 3.11 or 3.12, nothing else. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up down status test check format bench faults clean

VENV := .venv
STAMP := $(VENV)/.installed
PY := $(VENV)/bin/python
EXTRAS := embedded,demo,test,bench
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
# A hundred processes of the tests and the demo import the same modules: compiled once, not by each.
unexport PYTHONDONTWRITEBYTECODE
# Kills of movers in `make faults`, all else in proportion to 1000; empty: the whole campaigns.
N ?=
# Processes that share the tests, a file at a time, each with servers of its own: on two processors a third takes the
# time in which the other two wait (716 s for 840 s).
JOBS ?= 3
# Where the tests' servers keep their data: in memory, where 8 GB are free. On a disk they take a tenth longer.
MEMORY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8000000 {print "/dev/shm"}')

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@python=$$(command -v python3.11 || command -v python3.12 || command -v python3) \
	  || { echo "make: no python3 found; install Python 3.11" >&2; exit 1; }
	began=$$SECONDS
	if command -v uv >/dev/null; then
	  echo "== installing into $(VENV) with uv"
	  [ -x $(PY) ] || uv venv --quiet --python "$$python" $(VENV)
	  uv pip install --quiet --python $(PY) -c constraints.txt -e '.[$(EXTRAS)]'
	else
	  echo "== installing into $(VENV) with pip (two minutes or so, once)"
	  [ -x $(PY) ] || "$$python" -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "make: $$python cannot make environments; install its venv package" >&2; exit 1; }
	  # Modules are compiled when they are first imported, as with uv: all of them at once would take a third of this.
	  $(PY) -m pip install --quiet --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	fi
	echo "== installed in $$((SECONDS - began)) s"
	touch $@

.ONESHELL:

demo: $(STAMP) ## everything, once, on seeded and real data; prints a report and stops
	@$(PY) -m deployments.demo

up: $(STAMP) ## databases, Prefect server, pool, worker, deployments; they stay up
	@$(PY) -m deployments.bringup up

down: $(STAMP) ## stop what `make up` started; data stays in .stack/
	@$(PY) -m deployments.bringup down

status: $(STAMP) ## what is running
	@$(PY) -m deployments.bringup status

check: $(STAMP) ## format, lint, types, tidiness, the pure tests: seconds
	@echo "== ruff format"; $(PY) -m ruff format --check --quiet .
	echo "== ruff"; $(PY) -m ruff check --quiet .
	echo "== mypy"; $(PY) -m mypy
	echo "== tidy and plan"; $(PY) -m pytest -q tests/test_tidy.py tests/plan

format: $(STAMP) ## put the code into shape
	@$(PY) -m ruff check --quiet --fix . || true
	$(PY) -m ruff format --quiet .

test: $(STAMP) ## all tests, on real servers, with a sample of the fault campaigns
	@export TMPDIR="$${TMPDIR:-$(MEMORY)}"
	$(PY) -m pytest -q --durations=10 -n $(JOBS) --no-loadscope-reorder

bench: $(STAMP) ## measure ourselves beside our peers; writes build/bench.json
	@$(PY) -m tests.bench

faults: $(STAMP) ## all fault campaigns (N=… kills of 1000, all else in proportion); writes build/faults.json
	@export TMPDIR="$${TMPDIR:-$(MEMORY)}"
	$(PY) -m tests.faults.all $(if $(N),--n $(N))

clean: down ## stop, and delete environment and data
	@rm -rf $(VENV) .stack build .env
