# All targets need only Python >= 3.11 and a package index. Each installs what it needs into .venv, once, with a
# message. `make PYTHON=python3.12` selects another Python.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs
PIP_FLAGS :=  # such as --no-compile, which CI sets
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --editable
SHORT := { grep -v '^Requirement already satisfied' || true; }  # pip's output without requirements already met

COVERED := tests/bulk tests/cli tests/datasets tests/checkpoints $(addprefix tests/, test_benchmark.py models/test_recipes.py \
  test_runfile.py training/test_checkpoint.py training/test_run.py training/test_resume.py)

.DEFAULT_GOAL := help
.PHONY: help demo test check torture mutants coverage fix figures docs dist

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED)  ## Detect blood cells in test images with the shipped weights, offline; evaluate and draw them.
	@$(BIN)/python examples/blood_cells/demo.py

test: $(INSTALLED)  ## Run the tests, including the code in the documentation.
	@echo "Running the tests (some minutes on two cores) ..."
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)  ## Run the checks of CI: lint, format, types, import directions, tests.
	@echo "Linting ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "Checking types ..."
	@$(BIN)/mypy
	@echo "Checking import directions ..."
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

torture: $(INSTALLED)  ## Inject every fault that querybox has to survive (long form); print a table of the outcomes.
	@cd tests && ../$(BIN)/python -m torture

mutants: $(INSTALLED)  ## Mutate the matcher and the criterion; list the mutants that no test detects.
	@cd tests && ../$(BIN)/python -m torture.mutants

coverage: $(INSTALLED)  ## Measure the branch coverage of the data, checkpoint and command-line code.
	@$(BIN)/coverage run -m pytest -q $(COVERED)
	@$(BIN)/coverage report

fix: $(INSTALLED)  ## Apply ruff's automatic fixes, and format.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

figures: $(INSTALLED)  ## Regenerate the figures and tables of docs/anatomy from the shipped model.
	@$(BIN)/python -m figures

docs: $(DOCS_INSTALLED)  ## Build the documentation into site/; a broken link is an error.
	@echo "Building the documentation ..."
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

dist: $(INSTALLED)  ## Build wheel and sdist into dist/, check them, and run the wheel in an empty environment.
	@echo "Building ..."
	@$(INSTALL) '.[release]' | $(SHORT)
	@rm -rf dist && $(BIN)/python -m build > /dev/null && $(BIN)/twine check --strict dist/*
	@echo "Installing the wheel into an empty environment: some minutes, up to 3 GB ..."
	@folder=$$(mktemp --directory) && trap "rm -rf $$folder" EXIT && $(PYTHON) -m venv $$folder && \
	  $$folder/bin/python -m pip install --disable-pip-version-check --quiet dist/*.whl && \
	  $$folder/bin/querybox --version && $$folder/bin/querybox info examples/blood_cells

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "querybox needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + \
	  ". Name another one: make PYTHON=python3.12 ...")'
	@if test -x $(BIN)/python; then \
	  echo "Updating .venv to match pyproject.toml ..."; \
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
