PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTOS ?= samples
RUN ?= runs/demo
PYTEST_ARGS ?= -n 2 --dist=worksteal

.PHONY: demo test lint aot install install-dev clean

demo: install  ## render, train, evaluate and restore: the whole path, about eight minutes on two cores
	$(BIN)/python -m uniser_jax.demo --config=configs/tiny.py --workdir=$(RUN) --config.data.photos=$(PHOTOS)

test: install-dev  ## all tests, in two processes
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install-dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

aot: install-dev  ## the table of docs/scale.md: every preset compiled for TPUs that are not here; hours, goes on after a stop
	$(BIN)/python -m benchmarks.aot

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs .jax_cache
