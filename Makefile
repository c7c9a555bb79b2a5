# Each target does its own set-up, with plain pip, in .venv.
PYTHON ?= python3
VENV ?= .venv
# The tested versions; empty takes what pip resolves.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install $(CONSTRAINTS:%=--constraint %)
# One thread a worker: two cores with four threads wait for each other half of the time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
COVER := --cov=embedcache --cov=embedcache_cli
# Runs a target and prints its time.
step = +@start=$$(date +%s); $(MAKE) --no-print-directory $(1) && \
	echo "== $(firstword $(1)) took $$(( $$(date +%s) - start )) s"

.PHONY: quickstart test test-fast test-slow test-free lint bench clean

quickstart: $(VENV)/.installed
	$(BIN)/embedcache quickstart

test: $(VENV)/.installed-dev  # cheapest first
	$(call step,lint)
	$(call step,test-fast COVERAGE='$(COVER) --cov-report=')
	$(call step,test-slow COVERAGE='$(COVER) --cov-append --cov-fail-under=90')

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(COVERAGE)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow $(COVERAGE)

test-free:  # all of it, with the newest versions that pyproject.toml admits
	$(MAKE) VENV=.venv-free CONSTRAINTS= test

# NAME=store runs benchmarks/bench_store.py; a failed run leaves the published output as it was.
SCRIPT = $(basename $(notdir $(wildcard benchmarks/bench_$(NAME).py benchmarks/$(NAME).py)))
bench: $(VENV)/.installed-bench
	@test -n '$(SCRIPT)' || { echo "make bench NAME=...: one of" benchmarks/*_*.py; exit 2; }
	$(BIN)/python benchmarks/$(SCRIPT).py $(ARGS) > benchmarks/results/$(SCRIPT).tmp
	mv benchmarks/results/$(SCRIPT).tmp benchmarks/results/$(SCRIPT).txt
	cat benchmarks/results/$(SCRIPT).txt

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedcache needs Python 3.11 or newer; run `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV) (torch is large; this takes a minute or more) ..."
	$(INSTALL) --editable '.[quickstart]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) --editable '.[bench,finetune]'
	touch $@

clean:
	rm -rf .venv .venv-free .embedcache phantom .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
