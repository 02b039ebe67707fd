# `make` prints this menu. CONTRIBUTING.md says how long each target takes.

.DEFAULT_GOAL := help
.PHONY: help lint format test test-fast test-slow docs bench build ci

# Tests that start commands, training runs or several processes, which take most of the time.
whole := tests/browser tests/cli tests/distributed tests/documentation tests/engine tests/faults tests/interop

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

test-fast:  ## without the tests that start commands, runs or several processes: while you work
	pytest -n auto $(addprefix --ignore=,$(whole))

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
