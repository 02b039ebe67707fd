# `make` prints this menu. CONTRIBUTING.md says how long each target takes.

.DEFAULT_GOAL := help
.PHONY: help lint format test test-fast test-long docs bench build ci

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

lint:  ## what a pull request must pass before its tests: ruff, import-linter, mypy
	ruff check .
	ruff format --check .
	lint-imports
	mypy

format:  ## fixes what ruff can fix
	ruff check --fix .
	ruff format .

test:  ## everything but the long tier
	pytest -n auto

test-fast:  ## without the tests that start commands, runs or several processes: while you work
	pytest -n auto -m "not slow"

test-long:  ## whole registries and grids
	pytest -n auto -m long

docs:  ## the documentation, into build/docs; needs the extra `docs`
	sphinx-build -W docs build/docs

bench:  ## names the benchmarks; each says with --help what it measures
	@grep -l __main__ scripts/bench/*.py

build:  ## a wheel and a source archive, into dist/
	hatchling build

ci:  ## what a pull request runs, in a fresh environment
	.ci/run
