# Two commands for everyone: `make demo` and `make test`. Each sets itself up in .venv.
#   build   demo   watch   test   test-real   soak   sanitize   check   paper   paper-quick
#   robust   bench   bench-compare   bench-instructions
#   lint   types   format   fuzz   debug   annotate   clean
# ARGS="..." goes to the program behind the verb.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS   ?=

export PATH := $(CURDIR)/$(BIN):$(PATH)

NATIVE := $(shell find csrc lodestar_fast -name '*.[ch]' -path 'csrc/*' -o -name '*.pyx' -o -name '*.pxd')
SOURCE := pyproject.toml setup.py constraints.txt Makefile $(NATIVE)

.PHONY: build demo watch test test-real check soak sanitize paper paper-quick robust bench bench-compare bench-instructions lint types format fuzz debug annotate clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lodestar needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The build requirements stand in .venv, not in pip's own isolated folder, so that a second build
# compiles only what changed.
$(VENV)/.built: $(VENV)/.venv $(SOURCE)
	$(PIP) pip setuptools wheel cython
	$(PIP) --no-build-isolation --editable '.[learner,tools]'
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	$(PIP) --group dev
	@touch $@

demo: build
	$(BIN)/lodestar demo $(ARGS)

watch: build
	$(BIN)/lodestar watch $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests $(ARGS)

# Two real vLLM (CPU build) and two `transformers serve`; the openai client, two load clients and, if
# it is installed, Prometheus. Ten minutes, and more to install it all the first time (5 GB). What is
# there already can be used: make test-real REAL_VENV=... REAL_MODEL=...
REAL_VENV  ?= .venv-real
REAL_MODEL ?= $(REAL_VENV)/model

test-real: $(VENV)/.dev
	$(BIN)/python tests/real/install.py $(REAL_VENV) $(REAL_MODEL)
	REAL_VENV=$(REAL_VENV) REAL_MODEL=$(REAL_MODEL) $(BIN)/python -m pytest tests/real/real_*.py --timeout=1800 $(ARGS)

# Fuzz, leaks, rolling restarts, overload, crowds, two million requests: half an hour, with figures.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak.fuzz
	$(BIN)/python -m tests.soak.traffic $(ARGS)
	$(BIN)/python -m tests.soak.crowds
	$(BIN)/python -m tests.soak.abuse
	$(BIN)/python -m tests.soak.marathon

# The compiled parts under sanitizers: a build of their own, the tests that call them, hostile bytes.
sanitize: $(VENV)/.dev
	$(BIN)/python -m tests.soak.sanitized $(ARGS)

# The gate before a change is proposed.
check: lint types test

bench: $(VENV)/.dev
	$(BIN)/python -m pytest bench --benchmark-json=bench/results.json $(ARGS)

bench-compare: $(VENV)/.dev
	$(BIN)/python bench/compare.py bench/baseline.json bench/results.json $(ARGS)

# Every policy in every cell of the evaluation; hours. What is there already is not run again, so it
# may be stopped at any moment. ARGS="--plan" says how long it takes. bench/paper/README.md has more.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

paper: build
	$(BIN)/lodestar matrix --jobs $(JOBS) --report paper-report --readme README.md $(ARGS)

# The cells that matter most, in an hour on two cores.
paper-quick: build
	$(BIN)/lodestar matrix --quick --jobs $(JOBS) --report paper-report --readme README.md $(ARGS)

# Whether the learned policy ever collapses: 500 short runs of fleets, requests and faults drawn at
# random. ARGS="--robust 30" for fewer, "--first 17 --robust 1" for seed 17.
robust: build
	$(BIN)/lodestar matrix --robust 500 --jobs $(JOBS) $(ARGS)

# Instructions of the hot functions: the same on every run, however busy the machine is.
bench-instructions:
	$(PYTHON) bench/instructions.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint lodestar_fast
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h tests/*.c bench/*.c

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.c csrc/*.h tests/*.c bench/*.c

# Longer than the ten seconds of the test suite. SECONDS=3600 make fuzz
fuzz: $(VENV)/.dev
	LODESTAR_FUZZ_SECONDS=$${SECONDS:-60} $(BIN)/python -m pytest tests/test_csrc.py --timeout=0 $(ARGS)

# Bounds checks, asserts and line tracing: slow, for finding bugs and for coverage.
debug: $(VENV)/.dev
	LODESTAR_DEBUG=1 $(BIN)/python setup.py -q build_ext --inplace --force
	$(BIN)/python -m pytest tests --cov --cov-report=term-missing:skip-covered $(ARGS)
	$(BIN)/python setup.py -q build_ext --inplace --force

annotate: $(VENV)/.dev
	$(BIN)/cython --annotate -3 -Icsrc lodestar_fast/core/*.pyx lodestar_fast/proxy/*.pyx

clean:
	rm -rf build dist *.egg-info $(VENV)/.built
	find lodestar_fast -name '*.so' -delete -o -name '*.html' -delete
	find lodestar_fast -name '*.c' -delete
