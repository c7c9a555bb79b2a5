# `make quickstart` and `make test` each do their own set-up, with plain pip, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: quickstart test test-fast lint clean

quickstart: $(VENV)/.installed
	$(BIN)/embedcache quickstart

test: lint  # one thread a worker: two cores with four threads wait for each other half of the time
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov=embedcache --cov=embedcache_cli --cov-fail-under=90

test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedcache needs Python 3.11 or newer; run `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (torch is large; this takes a minute or more) ..."
	$(PIP) install --constraint constraints.txt --editable '.[quickstart]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .embedcache phantom .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
