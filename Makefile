# Every target sets up what it needs; nothing but Python >= 3.11 has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo serve test lint types unit chaos load bench nodes paper quality docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

install: $(INSTALLED)  ## make .venv with the pinned dependencies

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into $(VENV); about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# without its dependencies: it asks for torchvision and pandas, which the parts that we compare with never import
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps mup
	# for the one file of axe in it; what drives a browser is ours
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps axe-playwright-python
	@touch $@

demo: install  ## start the service, ask it for examples/transformer.yaml, print the answer, stop
	$(BIN)/python examples/make_characters.py
	$(BIN)/python examples/demo.py

serve: install  ## run the service until Ctrl-C
	@exec $(BIN)/featurespeed serve

test: lint types unit  ## everything that CI checks

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# What only computes runs on two cores at once; what starts processes and servers one by one.
COMPUTING := $(addprefix tests/,architectures data measurement quality theory test_contract.py)

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(COMPUTING)
	$(BIN)/python -m pytest tests $(addprefix --ignore=,$(COMPUTING))

chaos: install  ## the service's promises under kills, outages and floods, in full: most of an hour
	$(BIN)/python -m pytest tests/chaos tests/service/test_hostile.py --full -s --timeout 3000

load: install  ## POST/s of 16 clients on both databases, and 1,000 queued jobs; appends to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.load --keep

bench: install  ## speed and memory, as ratios from one run; appends to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

nodes: install  ## what dispatcher and store cost a cell, and 64 simulated nodes; appends to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.nodes

paper: install  ## the paper's figures, through the engine, into docs/paper/
	$(BIN)/python -m benchmarks.paper

quality: install  ## our rates against a sweep and others: QUALITY=--quick for minutes; else hours, resumable
	$(BIN)/python -m benchmarks.quality $(QUALITY)

docs: install  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## remove the virtual environment and what the demo made
	rm -rf $(VENV) demo-output site .mypy_cache .ruff_cache .pytest_cache
