# Everything works on a machine that has only Python >= 3.11 and a package index: what a target needs, it
# installs into .venv, once, and says so. `make PYTHON=python3.12` picks another Python.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help demo test check fix docs

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED)  ## Find blood cells in test images with the shipped weights, offline; score them; draw them.
	@$(BIN)/python examples/blood_cells/demo.py

test: $(INSTALLED)  ## Run the tests, and the code of the documentation.
	@echo "Running the tests (some minutes on two cores) ..."
	@$(BIN)/python -m pytest

check: $(INSTALLED)  ## Run all that CI runs: lint, format, types, import directions, tests.
	@echo "Linting ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "Checking types ..."
	@$(BIN)/mypy
	@echo "Checking import directions ..."
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

fix: $(INSTALLED)  ## Repair what ruff can repair, and format.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DOCS_INSTALLED)  ## Build the documentation into site/; a broken link is an error.
	@echo "Building the documentation ..."
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "querybox needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + \
	  ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Creating .venv with $$($(PYTHON) --version) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing querybox, PyTorch and the development tools into .venv"
	@echo "(once; up to 3 GB to download, then 5 to 10 minutes) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@echo "Installing the documentation tools into .venv ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[docs]'
	@touch $@
