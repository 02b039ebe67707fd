# `make` prints this menu. CONTRIBUTING.md says how long each target takes.

.DEFAULT_GOAL := help
.PHONY: help lint format test test-fast test-slow docs bench build ci

# Fast tests of modules with few dependencies.
fast := tests/core tests/losses tests/methods tests/search

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

test:  ## everything but the slow tests
	pytest -n auto

test-fast:  ## the mathematics, the methods, the index: while you work
	pytest $(fast)

test-slow:  ## whole registries and grids
	pytest -n auto -m slow

docs:  ## the documentation, into build/docs; needs the extra `docs`
	sphinx-build -W docs build/docs

bench:  ## names the benchmarks; each says with --help what it measures
	@grep -l __main__ scripts/bench/*.py

build:  ## a wheel and a source archive, into dist/
	hatchling build

ci:  ## what a pull request runs, in a fresh environment
	.ci/run
