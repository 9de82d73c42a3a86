# `make run` and `make test` do everything on a fresh machine: uv, virtual environment, dependencies, job.
SHELL := /bin/bash
PYTHON ?= >=3.11,<3.13
VENV := .venv
PY := $(VENV)/bin/python
UV := $(shell command -v uv || echo .uv/bin/uv)
# A local build of torch that pip is configured to find is found by uv as well.
export UV_FIND_LINKS ?= $(shell python3 -m pip config get global.find-links 2>/dev/null)

.PHONY: run test test-all lint bench clean setup

run: setup
	$(PY) run_robot.py --task valve_random --hw sim --config configs/laptop.yaml

test: setup lint
	$(PY) -m pytest -q -m "not slow"

test-all: setup lint
	$(PY) -m pytest -q

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) $$script || exit 1; done

setup: $(VENV)/.installed

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
	$(UV) pip install --quiet --python $(PY) --requirements pyproject.toml --extra dev --extra dm --constraints constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .uv .mypy_cache .pytest_cache .ruff_cache runs
