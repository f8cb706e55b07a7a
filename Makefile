# `make demo` and `make test` are the two commands of the README; each target makes the environment first.
PYTHON ?= python3
BIN = .venv/bin

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "prlhf needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo test slow check bench package mutants docs notebook site results fuzz faults

demo: .venv/ready  ## P-DPO and vanilla DPO on synthetic data: Figure 3 of the paper
	$(BIN)/prlhf demo

test: .venv/ready  ## the fast tests
	$(BIN)/pytest -n logical

slow: .venv/ready  ## the slow tests: kills, timings, the demo
	$(BIN)/pytest -m slow

check: .venv/ready  ## format, lint and types, as in CI
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready  ## the speed of training, generation and many users, compared with what was recorded; a minute or two
	$(BIN)/python -m benchmarks.quick

package: .venv/ready  ## install the wheel into a fresh environment and run `prlhf demo --quick` with it
	.ci/package

mutants: .venv/ready  ## change the code in many places (tests/mutations.yaml): a test must fail each time; over an hour
	$(BIN)/python tests/mutate.py --log mutants.log

docs: .venv/ready  ## write the pages that come from the code
	$(BIN)/python docs/settings.py
	$(BIN)/python -m prlhf_cli.docs > docs/CLI.md
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/recipes.py

notebook: .venv/ready  ## run docs/notebooks/first_steps.ipynb and keep its outputs; a minute
	$(BIN)/python docs/notebook.py

site: .venv/ready  ## build the documentation in site/; a warning is an error
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

fuzz: .venv/ready  ## give 20,000 damaged files and values to the library; half an hour
	$(BIN)/python -m benchmarks.fuzz --cases $(or $(CASES),20000) --seed $(or $(SEED),1)

faults: .venv/ready  ## kill commands at random times, and fill the disk at random bytes; an hour
	$(BIN)/python -m benchmarks.faults --kills $(or $(KILLS),60) --seed $(or $(SEED),1)
	$(BIN)/python -m benchmarks.full_disk --cases $(or $(CASES),40) --seed $(or $(SEED),1)

results: .venv/ready  ## run the experiments that are missing in runs/results and write docs/RESULTS.md; hours
	$(BIN)/python -m benchmarks.results
