# Every target does its own set-up: a machine needs make and Python 3.11 or newer, nothing else.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test test-slow check lint format constraints
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1 \t/' | expand -t 14

install: .venv/.installed  ## create .venv and install fedsd with the exact versions of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv; the first time downloads PyTorch, which can take minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,web]'
	@touch $@

demo: install  ## eight simulated devices learn four drawn styles; ends with a report of pictures
	@folder="runs/demo-$$(date +%Y-%m-%d_%H%M%S)"; $(BIN)/fedsd run --preset demo --folder "$$folder" && \
	echo "report $$PWD/$$folder/report.html"

test: install  ## all tests but the slow ones, in two processes: engines wait more than they compute
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: install  ## the slow tests: a SuperLink with TLS and two SuperNodes on this machine, and the page in a browser
	@$(BIN)/python -m pytest -m slow

lint: install  ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check: lint test  ## what has to pass before a commit

format: install  ## let ruff lay out the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

constraints:  ## renew constraints.txt from a fresh environment
	@fresh=$$(mktemp -d) && $(PYTHON) -m venv $$fresh && $$fresh/bin/python -m pip install --quiet -e '.[dev,web]' && \
	$$fresh/bin/python -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[^+@]+$$' \
	| grep -vE '^pip==' > constraints.txt; rm -rf $$fresh
