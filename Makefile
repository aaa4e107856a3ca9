PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Both are made once a change of pyproject.toml or constraints.txt.
INSTALLED := $(VENV)/.installed
FOR_TESTS := $(VENV)/.installed-for-tests
ENGINES := tests/engines tests/export tests/models

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: run test test-all test-ray test-rest test-engines lint bench browser docs wheel clean help

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(INSTALLED) ## the whole job on bundled data: make a small model, answer a corpus
	$(BIN)/tinyqa quickstart

test: $(FOR_TESTS) ## the tests but the slow ones: 11 to 26 minutes on two cores
	+$(MAKE) --jobs 2 --keep-going --output-sync=target SLOW="and not slow" test-ray test-rest test-engines

test-all: $(FOR_TESTS) ## every test, and so every promise
	+$(MAKE) --jobs 2 --keep-going --output-sync=target test-ray test-rest test-engines

# What starts Ray runs beside the rest, as much of it waits.
test-ray: $(FOR_TESTS)
	$(BIN)/python -m pytest -m "ray $(SLOW)"

test-rest: $(FOR_TESTS)
	$(BIN)/python -m pytest -m "not ray $(SLOW)" $(ENGINES:%=--ignore=%)

# Begins when one of the two others has ended, so that both cores have work to the end.
test-engines: $(FOR_TESTS)
	$(BIN)/python -m pytest -m "not ray $(SLOW)" $(ENGINES)

lint: $(FOR_TESTS) ## format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(FOR_TESTS) ## benchmarks, small, within three quarters of an hour: one JSON line each, with the machine and a ratio
	$(BIN)/python benchmarks/all.py

browser: $(FOR_TESTS) ## a page that answers in the browser, into build/browser; needs npm
	$(BIN)/tinyqa browser --output build/browser

docs: $(FOR_TESTS) ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

wheel: $(FOR_TESTS) ## a wheel and an sdist, in dist/
	$(BIN)/python -m build

clean: ## remove the environment, runs and caches
	rm -rf $(VENV) runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(FOR_TESTS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart,dev]'
	touch $@
