# The two commands of the README are `make demo` and `make test`; both make the environment first.
PYTHON ?= python3
BIN = .venv/bin

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "prlhf needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo test slow check package mutants docs notebook site results fuzz faults

demo: .venv/ready  ## the main job: P-DPO against vanilla DPO on the embedded demo, Figure 3 of the paper
	$(BIN)/prlhf demo

test: .venv/ready  ## the fast tests
	$(BIN)/pytest -n logical

slow: .venv/ready  ## what takes longer: real kills, timings, the demo itself
	$(BIN)/pytest -m slow

check: .venv/ready  ## what CI checks besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

package: .venv/ready  ## the wheel, installed into a fresh environment, runs `prlhf demo --quick` outside the checkout
	.ci/package

mutants: .venv/ready  ## faults put in on purpose (tests/mutations.yaml): a test must see each of them; an hour and more
	$(BIN)/python tests/mutate.py --log mutants.log

docs: .venv/ready  ## the pages that are made from the code
	$(BIN)/python -m prlhf_cli.docs > docs/CLI.md
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/recipes.py

notebook: .venv/ready  ## the outputs of docs/notebooks/first_steps.ipynb; a minute
	$(BIN)/python docs/notebook.py

site: .venv/ready  ## the documentation as a site, in site/; a warning is an error
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

fuzz: .venv/ready  ## 20,000 damaged files and values: each is accepted whole or refused in one line; half an hour
	$(BIN)/python -m benchmarks.fuzz --cases $(or $(CASES),20000) --seed $(or $(SEED),1)

faults: .venv/ready  ## kill -9 at random times, 60 times, and a full disk at random bytes: nothing is lost; an hour
	$(BIN)/python -m benchmarks.faults --kills $(or $(KILLS),60) --seed $(or $(SEED),1)
	$(BIN)/python -m benchmarks.full_disk --cases $(or $(CASES),40) --seed $(or $(SEED),1)

results: .venv/ready  ## docs/RESULTS.md: every experiment that is not in runs/results yet, an hour and more
	$(BIN)/python -m benchmarks.results
