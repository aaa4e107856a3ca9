PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything is installed once a change of these files.
INSTALLED := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: run test test-all test-ray test-rest lint bench browser clean help

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(INSTALLED) ## the whole job on bundled data: make a small model, answer a corpus
	$(BIN)/tinyqa quickstart

test: $(INSTALLED) ## the tests that keep every promise, within ten minutes on two cores
	+$(MAKE) --jobs 2 --keep-going --output-sync=target SLOW="and not slow" test-ray test-rest

test-all: $(INSTALLED) ## every test
	+$(MAKE) --jobs 2 --keep-going --output-sync=target test-ray test-rest

# What starts Ray runs beside the rest, as much of it waits.
test-ray: $(INSTALLED)
	$(BIN)/python -m pytest -m "ray $(SLOW)"

test-rest: $(INSTALLED)
	$(BIN)/python -m pytest -m "not ray $(SLOW)"

lint: $(INSTALLED) ## format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## benchmarks, small, within half an hour: one JSON line each, with the machine and a ratio
	$(BIN)/python benchmarks/all.py

browser: $(INSTALLED) ## a page that answers in the browser, into build/browser; needs npm
	$(BIN)/tinyqa browser --output build/browser

clean: ## remove the environment, runs and caches
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart,dev]'
	touch $@
