# make demo and make test are all that a newcomer needs; each first makes .venv from the exact lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test install lint bench look nightly

demo: $(STAMP) ## the toy experiment: corpus to table
	$(BIN)/python -m kdlab.run

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

install: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kdlab

bench: $(STAMP) ## slow measurements, not part of the tests; each prints its numbers and fails beyond its limit
	set -e; for file in tests/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

nightly: $(STAMP) ## slow tests: every strategy under all objectives, every way in which a training or a labelling can die
	PARITY=everything KDLAB_FAULTS=all $(BIN)/python -m pytest tests/integration/test_parity.py tests/integration/test_ranks.py
	$(BIN)/python tests/crash_labelling.py

look: $(STAMP) ## pictures of a report in a headless chromium, 1280 and 400 pixels wide, in build/look
	$(BIN)/python tests/look_report.py

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kdlab needs Python 3.10 or later, this is %s; write PYTHON=<another python>" % sys.version.split()[0])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@
