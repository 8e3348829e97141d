# Every target sets up what it needs: a fresh machine wants only Python 3.11 or newer and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

S3RVER := $(VENV)/s3rver

.PHONY: help demo test test-full browser s3rver lint format bench models constraints clean

help:
	@echo "make demo       a queue, a worker and a task on this machine; Ctrl-C ends it"
	@echo "make test       the tests, in less than 10 minutes"
	@echo "make test-full  the tests with the counts that take long"
	@echo "make browser    Debian's Chromium for tests/browser, where that may be installed"
	@echo "make s3rver     an S3 server for tests that refuses bad signatures, where there is npm"
	@echo "make lint       ruff, mypy, flake8-async"
	@echo "make format     let ruff mend what it can"
	@echo "make bench      the benchmarks (bench/README.md)"
	@echo "make models SCHEMAS=DIR   worker/queue/models.py anew from Taskcluster's schemas"
	@echo "make constraints          newer versions into constraints.txt"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m worker.demo

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not full"

test-full: $(READY)
	$(BIN)/python -m pytest

# Without it, and where nobody may install it, the tests that need it are skipped, and say so.
browser:
	@command -v chromium >/dev/null || test ! -x /usr/bin/apt-get || test "$$(id -u)" != 0 || \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; } || \
		echo "chromium could not be installed: tests/browser will be skipped"

# As above.
s3rver: $(READY)
	@test -x $(S3RVER)/node_modules/.bin/s3rver || ! command -v npm >/dev/null || \
		npm install --silent --no-audit --no-fund --no-save --prefix $(S3RVER) s3rver@3 || \
		echo "s3rver could not be installed: tests that need it will be skipped"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/flake8 worker engines plugins tests bench

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m bench

models: $(READY)
	$(BIN)/python -m worker.queue.generate_models $(SCHEMAS)

constraints:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev,plots]'
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt
	@touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis bench/out
