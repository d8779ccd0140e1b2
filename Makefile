# A fresh machine needs only Python and make: `make demo` and `make test` install the rest into .venv.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STORY  := Once upon a time, there was a

.PHONY: demo test test-all check mutants faults gpu clean
demo: $(VENV)/installed
	$(PY) prepare_data.py --preset demo --sample
	$(PY) train_tiny.py --preset demo
	$(PY) train_children.py --preset demo
	$(PY) train_simp.py --preset demo
	@echo
	$(PY) generate.py --preset demo --seed 1 --prompt "$(STORY)"

test: $(VENV)/installed-dev  # of every module something, in about two minutes on two cores
	$(PY) -m pytest -n auto -m "not slow"

test-all: $(VENV)/installed-dev
	$(PY) -m pytest -n auto

check: $(VENV)/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

mutants: $(VENV)/installed-dev
	$(PY) tests/mutants.py

faults: $(VENV)/installed-dev
	$(PY) tests/faults/run.py

$(VENV)/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

gpu:  # needs a GPU, and torch in $(PYTHON); installs nothing
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV)
