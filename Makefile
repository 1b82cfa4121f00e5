# Needs Python 3.11 or newer and make; everything else is installed into a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: help demo test lint types format bench install clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     collect, sample, ask in SQL, train: arrowrb at work, with what it measured"
	@echo "make test     ruff, mypy and all tests"
	@echo "make bench    the figures of the README, with the peers measured in the same run"
	@echo "make lint     ruff and mypy only"
	@echo "make format   let ruff format the code"
	@echo "make clean    remove the virtual environment, caches and build output"

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for script in benchmarks/bench_*.py; do $(BIN)/python "$$script"; done

install: $(STAMP)

# Written last, so that an installation that was broken off is taken up again.
$(STAMP): requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what is pinned in requirements-dev.txt into $(VENV), once; this takes a few minutes ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), expected 3.11 or newer. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "error: '$(PYTHON)' cannot create a virtual environment (on Debian and Ubuntu: install python3-venv)." >&2; \
	  rm -rf "$(VENV)"; exit 1; }

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find arrowrb tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
