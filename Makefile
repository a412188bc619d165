# Everything works on a machine that has only Python >= 3.11 and a package index: what a target needs, it
# installs into .venv, once, and says so. `make PYTHON=python3.12` picks another Python.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --editable
SHORT := { grep -v '^Requirement already satisfied' || true; }  # what pip says, less what it did not do

COVERED := tests/cli tests/datasets tests/checkpoints $(addprefix tests/, test_benchmark.py models/test_recipes.py \
  test_runfile.py training/test_checkpoint.py training/test_run.py training/test_resume.py)

.DEFAULT_GOAL := help
.PHONY: help demo test check torture fix figures docs

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED)  ## Find blood cells in test images with the shipped weights, offline; score them; draw them.
	@$(BIN)/python examples/blood_cells/demo.py

test: $(INSTALLED)  ## Run the tests, and the code of the documentation.
	@echo "Running the tests (some minutes on two cores) ..."
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(INSTALLED)  ## Run all that CI runs: lint, format, types, import directions, tests.
	@echo "Linting ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "Checking types ..."
	@$(BIN)/mypy
	@echo "Checking import directions ..."
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

torture: $(INSTALLED)  ## Make every fault that querybox has to survive, in its long form; a table of what happened.
	@cd tests && ../$(BIN)/python -m torture

mutants: $(INSTALLED)  ## Change the matcher and the criterion in small ways; tell which changes no test notices.
	@cd tests && ../$(BIN)/python -m torture.mutants

coverage: $(INSTALLED)  ## Measure which branches of the data, checkpoint and command-line code the tests take.
	@$(BIN)/coverage run -m pytest -q $(COVERED)
	@$(BIN)/coverage report

fix: $(INSTALLED)  ## Repair what ruff can repair, and format.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

figures: $(INSTALLED)  ## Make the figures and tables of docs/anatomy anew, from the shipped model.
	@$(BIN)/python -m figures

docs: $(DOCS_INSTALLED)  ## Build the documentation into site/; a broken link is an error.
	@echo "Building the documentation ..."
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "querybox needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + \
	  ". Name another one: make PYTHON=python3.12 ...")'
	@if test -x $(BIN)/python; then \
	  echo "Bringing .venv up to date with pyproject.toml ..."; \
	else \
	  echo "Creating .venv with $$($(PYTHON) --version) ..." && $(PYTHON) -m venv .venv && \
	  echo "Installing querybox, PyTorch and the development tools into it: once, some minutes, up to 3 GB ..."; \
	fi
	@$(INSTALL) '.[dev]' | $(SHORT)
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@echo "Installing the documentation tools into .venv ..."
	@$(INSTALL) '.[docs]' | $(SHORT)
	@touch $@
