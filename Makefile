# make, make demo | test | lint: each does all its own set-up (Python 3.11 or later, make; uv comes by pip).
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: demo test lint format clean help

help: $(STAMP)
	@echo "make demo   a real CT through the node and a small test PACS"
	@echo "make test   the whole test suite"
	@echo "make lint   formatting, lint, types, import contracts"
	@echo "The command is $(BIN)/dicom-node."

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[test]"
	@touch $@

demo: $(STAMP)
	$(BIN)/dicom-node demo

# PYTEST_ARGS: further words for pytest, such as --cov.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-output
