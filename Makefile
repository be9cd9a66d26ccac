# `make demo` shows the product, `make test` tests it; each sets up .venv by itself. After a test,
# `make coverage` says which lines it did not run.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-oldest coverage check format clean

demo: .venv/demo
	$(BIN)/jina-clip-serve demo

test: .venv/dev
	$(BIN)/coverage erase
	$(BIN)/python -m tests.halves
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --format=total  # fails below the floor in pyproject.toml

# The model on the oldest torch that pyproject.toml allows, in an environment of its own.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/python -m pytest tests/deployments/model

coverage: .venv/dev
	$(BIN)/coverage report

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_imports.py

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-oldest

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml | $(BIN)/python
	@echo "Installing; torch alone is several hundred megabytes, so this takes some minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[haproxy]'
	touch $@

.venv/dev: pyproject.toml | $(BIN)/python
	@echo "Installing; torch alone is several hundred megabytes, so this takes some minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv-oldest/dev: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' 'torch==2.11.*'
	touch $@
