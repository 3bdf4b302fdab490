# Two commands: `make build` (no framework needed) and `make test` (installs them all).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2

.PHONY: build test lint verify clean

build: $(VENV)/build.stamp
	$(BIN)/python -m generator build
	$(BIN)/python examples/first.py

test: $(VENV)/test.stamp
	$(BIN)/python -m generator build --check
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

verify: $(VENV)/test.stamp
	$(BIN)/python -m generator verify --steps 1000 --jobs $(JOBS) --json docs/verify.json

$(VENV)/build.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[build]"
	touch $@

# PyTorch first and alone: a looser requirement would pull gigabytes of CUDA.
$(VENV)/test.stamp: $(VENV)/build.stamp
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
