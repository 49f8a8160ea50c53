# Everything runs in .venv, which is made from pyproject.toml and constraints.txt when they change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench roundtrip faults corruption storm model clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/crossfade demo $(ARGS)

# Each process starts services of its own. ARGS="-n 0 tests/unit" runs some of the tests in one.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

# N documents through PostgreSQL; with PIPELINE=20000 that many through MongoDB and Kafka as well.
roundtrip: $(STAMP)
	$(BIN)/python -m bench.roundtrip $(if $(N),--documents $(N)) $(ARGS)
ifdef PIPELINE
	ROUNDTRIP_DOCUMENTS=$(PIPELINE) $(BIN)/python -m pytest tests/e2e/test_roundtrip.py --timeout 1200
endif

# Seeded runs under faults; each says how to repeat it. ARGS=--plants: whether they find each planted bug.
# MOVES=1: tenants move there and back meanwhile.
SEEDS ?=
FIRST ?= 1
faults: $(STAMP)
	$(BIN)/python -m tests.faults $(if $(SEEDS),--seeds $(SEEDS)) --first $(FIRST) $(if $(MOVES),--moves) $(ARGS)

# N corruptions of every kind in a settled database, which the reconciler must find. ARGS=--documents=1000000
corruption: $(STAMP)
	$(BIN)/python -m tests.corruption $(if $(N),--planted $(N)) $(ARGS)

# Tenants move there and back under writes at a rate: that none is lost, and how long pauses last.
storm: $(STAMP)
	$(BIN)/python -m tests.storm $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

# The protocol in Promela: every order of events within the bounds, and that it breaks without each rule.
model: $(STAMP)
	$(BIN)/python -m model $(ARGS)

# The long forms of tests: make test LONG_FAULTS=1 ARGS="tests/faults tests/integration/test_poison.py"
export LONG_FAULTS

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
