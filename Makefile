# make train   set up, then train: the quickstart on a CPU, the reference system on an NVIDIA GPU
# make test    set up, then run the tests
# make lint    set up, then lint, format and type checks
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/
ARGS ?=
# jax[cuda12] is some gigabytes: only where an NVIDIA driver is loaded.
EXTRAS := test$(if $(wildcard /proc/driver/nvidia/version),$(shell echo ,cuda12))

.PHONY: train test lint setup clean

train: setup
	$(BIN)/python -m experiments.train --workdir $(WORKDIR) $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
