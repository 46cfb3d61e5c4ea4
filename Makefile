# `make demo` and `make test` do all set-up on a fresh machine with Python 3.11+ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto

# Python keeps what it has compiled: without that every start of torch costs a minute.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-speech test test-full test-reliability mutate lint format bench bench-gpu docs dist test-dist clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(VENV)/.demo ## pretrain on 5,000 real digits and answer: how many labels do I need? (about 6 minutes, 2 cores)
	$(BIN)/twofold demo

$(VENV)/.speech: $(VENV)/.demo
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[demo,speech]'
	@touch $@

demo-speech: $(VENV)/.speech ## pretrain on real telephone prompts, five ways (needs Debian's asterisk-core-sounds-*-wav)
	$(BIN)/twofold demo-speech

test: lint ## lint, types, architecture and every test that CI runs
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-full: lint ## every test there is, slow ones too, and more made-up examples
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile long

test-reliability: $(VENV)/.dev ## kills, faults of disks, damage, hostile files, lost processes: slow ones too (docs/reliability.md)
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile long tests/reliability tests/training tests/encoders/test_weights.py \
	  tests/evaluation/test_flipped_bits.py tests/data/test_loader.py tests/data/test_outside.py tests/test_interrupts.py \
	  tests/runs/test_changed_data.py tests/runs/test_joining.py tests/commands/test_stops.py \
	  tests/commands/test_lost_ranks.py tests/commands/test_restarts.py

mutate: $(VENV)/.dev ## errors where options become objects: which does no test notice? (an hour or two; MUTATE=optim/build.py for one file)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py $(MUTATE)

lint: $(VENV)/.dev ## formatting, lint, types and import rules
	$(BIN)/ruff format --check src tests benchmarks docs packaging
	$(BIN)/ruff check src tests benchmarks docs packaging
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## mend formatting and what lint can mend by itself
	$(BIN)/ruff format src tests benchmarks docs packaging
	$(BIN)/ruff check --fix src tests benchmarks docs packaging

docs: $(VENV)/.docs ## rebuild the generated pages and the site (site/)
	$(BIN)/python docs/make_reading.py
	$(BIN)/python docs/make_architecture.py
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_papers.py
	$(BIN)/zensical build --clean --strict

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench ## the short benchmarks: ratios from one run, side by side (under 10 minutes on 2 cores)
	$(BIN)/python benchmarks/views.py --seconds 2
	$(BIN)/python benchmarks/loss.py --rows 1024 4096 --repeats 3
	$(BIN)/python benchmarks/step.py --steps 5
	$(BIN)/python benchmarks/peers.py --steps 3 --repeats 1
	$(BIN)/python benchmarks/micro_batch.py --large 1024 --repeats 1

bench-gpu: ## all that a GPU is asked for, in 6 minutes (installs nothing: PYTHON=... has torch; GPU=--dry-run anywhere)
	PYTHONPATH=src:$$PYTHONPATH $(PYTHON) benchmarks/gpu.py $(GPU)

dist: $(BIN)/uv ## wheel and source archive in dist/ (HOME_URL=https://... is where the README's links lead)
	$(BIN)/python packaging/distribution.py build --home $(HOME_URL)

test-dist: $(BIN)/uv ## install the wheel of dist/ with each extra alone, on each Python there is, and run the README's journey
	$(BIN)/python packaging/distribution.py try

clean: ## remove the environment and caches (runs/ is kept)
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
