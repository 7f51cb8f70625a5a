# Each target sets up .venv by itself; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONSTRAINTS ?= constraints.txt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

train: $(READY) ## learn an embedding of the bundled digits: no download, under three minutes on two cores
	$(BIN)/python -m src.train

test: $(READY) ## run the tests, a process for each core up to four
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist load --maxschedchunk 1

check: $(READY) ## lint, formatting, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## time the hot paths against a named peer, side by side
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[bench]'
	@for script in $(filter-out benchmarks/__init__.py benchmarks/timing.py benchmarks/time_to_accuracy.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

mutants: $(READY) ## put faults into the code one at a time: at least 90% must make a test fail (90 minutes)
	$(BIN)/python -m tests.mutants

chaos: $(READY) ## kill real runs at random moments: they must end as if nothing had happened (an hour)
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos_sweep

fuzz: $(READY) ## ten thousand wrong settings, run folders, stores and image folders: each ends well or in one line (90 minutes)
	$(BIN)/python -m tests.fuzz

audit: $(READY) ## look the installed packages up among the known vulnerabilities; needs a network
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

clean: ## remove the environment and the caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[supervised,tensorboard,timm,slurm,ray,search,export,hub,serve,parquet,approximate,dev]'
	@touch $(READY)

.PHONY: help train test check format bench mutants chaos fuzz audit clean
.DEFAULT_GOAL := help
