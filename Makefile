# The whole interface: `make demo` and `make test` set everything up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-all check format stubs lock clean

help:
	@echo "make demo      train, export, serve and drive a small policy; the page shows what it is unsure of"
	@echo "make test      the test suite (minutes)"
	@echo "make test-all  also the long tests: learned laws against closed forms, every algorithm to known levels (hours)"
	@echo "make check     format, lint, types, import rules, generated stubs"
	@echo "make setup     the virtual environment .venv alone"
	@echo "make format    rewrite the sources in the house format"
	@echo "make stubs     regenerate protos/*_pb2* from the .proto files"
	@echo "make lock      rewrite requirements.lock with the newest versions pyproject.toml admits"
	@echo "make clean     remove .venv and caches; runs/ stays"

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version.split()[0] + "; try: make setup PYTHON=python3.11")'
	@echo "setting up .venv (once; some hundred megabytes)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup
	@$(BIN)/python deploy/demo.py

# A process per core, each computing on one thread; the tests of a file stay together, for they share what they set up. Files come in
# the order of their names: the last ones are short, so that no process waits long for another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(min(8, os.cpu_count() or 1))') --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "slow or not slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

stubs: setup
	$(BIN)/python -m protos.generate

lock:
	$(PYTHON) deploy/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
