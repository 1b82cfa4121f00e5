# Needs Python 3.11 or newer and make; everything else is installed into a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
VENV_BENCH ?= .venv-bench
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PIP = python -m pip --disable-pip-version-check install --quiet

SCALE ?= 1

.PHONY: help demo test torture lint format bench install clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     collect, sample, ask in SQL, train: arrowrb at work, with what it measured"
	@echo "make test     ruff, mypy and all tests"
	@echo "make torture  the tests of crashes, faults and damage, many times over: about an hour; SCALE=10 multiplies"
	@echo "make bench    the figures of the README, with the peers measured in the same run"
	@echo "make lint     ruff and mypy only"
	@echo "make format   let ruff format the code"
	@echo "make clean    remove the virtual environment, caches and build output"

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -q -n auto --dist worksteal

torture: $(STAMP)
	@$(BIN)/python -m tests.torture --scale $(SCALE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV_BENCH)/.installed
	@$(VENV_BENCH)/bin/python benchmarks/run.py

install: $(STAMP)

# Stamps are written last, so that an installation that was broken off is taken up again.
$(STAMP): requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what is pinned in requirements-dev.txt into $(VENV), once; this takes a few minutes ..."
	@$(BIN)/$(PIP) -r requirements-dev.txt
	@$(BIN)/$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

# One of the peers wants an older pandas, which the benchmarks do not use.
$(VENV_BENCH)/.installed: requirements-dev.txt benchmarks/requirements-peers.txt pyproject.toml | $(VENV_BENCH)/bin/python
	@echo "Installing arrowrb and its peers into $(VENV_BENCH), once; this takes a few minutes ..."
	@grep -v '^pandas==' requirements-dev.txt > $(VENV_BENCH)/requirements.txt
	@$(VENV_BENCH)/bin/$(PIP) -r $(VENV_BENCH)/requirements.txt -r benchmarks/requirements-peers.txt
	@$(VENV_BENCH)/bin/$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

%/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), expected 3.11 or newer. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv "$*" || { \
	  echo "error: '$(PYTHON)' cannot create a virtual environment (on Debian and Ubuntu: install python3-venv)." >&2; \
	  rm -rf "$*"; exit 1; }

clean:
	rm -rf .venv .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find arrowrb tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
