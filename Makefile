# Two commands matter: `make up` runs the product, `make test` passes all tests. Each does its own
# set-up in .venv, once per change of the lock files. Needs make and Python 3.11 or newer.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help up test fix lint bench lock clean moved

BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
SETUP := .ci/setup.sh .ci/python.sh pyproject.toml

# Scripts in a virtual environment carry its absolute path: a renamed folder needs a new one.
ifneq ($(wildcard .venv/.place),)
ifneq ($(shell cat .venv/.place),$(CURDIR))
MOVED := moved
endif
endif

help: ## print the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

up: $(RUNTIME) ## run the product on this machine (DEMO=1: with the traffic of a demo shop)
	@exec $(BIN)/tracker up $(if $(filter-out 0 no false off,$(DEMO)),--demo)

test: lint ## check format, style and types, then run every test
	@sh .ci/programs.sh
	@echo "== pytest"
	@exec $(BIN)/python -m pytest --ignore=tests/bench

lint: $(DEV) ## check format, style and types only
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check --quiet .
	@echo "== ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "== mypy"
	@$(BIN)/mypy

fix: $(DEV) ## repair format and style where a tool can
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

bench: $(DEV) ## run the benchmarks of tests/bench, one after the other
	@for program in tests/bench/[a-z]*.py; do \
		[ -e "$$program" ] || { echo "There is no benchmark in tests/bench."; exit 1; }; \
		echo "== $$program"; \
		$(BIN)/python "$$program" || exit 1; \
	done

lock: $(DEV) ## pin the requirements anew (UPGRADE=1: to the newest versions)
	@sh .ci/lock.sh $(if $(UPGRADE),--upgrade)

clean: ## remove .venv and all that the tools have cached; data stays
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find tracker consumers tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(RUNTIME): deploy/requirements.lock $(SETUP) $(MOVED)
	@sh .ci/setup.sh deploy/requirements.lock
	@touch $@

# The development tools come on top: `make up` never waits for them.
$(DEV): deploy/requirements-dev.lock $(RUNTIME)
	@sh .ci/setup.sh deploy/requirements-dev.lock
	@touch $@
