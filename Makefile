# The only prerequisites are Python >= 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# Both names, for old and new versions of pip: the build is pinned as well as what is installed.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: help setup run fig3 figures test slow check optimized lint format dist docs clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.setup  ## Create .venv with the pinned packages (PYTHON=... picks the interpreter)

run: setup  ## Train evidence accumulation with random-feedback e-prop (ARGS="--help" lists the options)
	$(BIN)/python -m experiments.evidence_accumulation $(ARGS)

fig3: setup  ## Make the runs of Fig. 3 that are missing, one after the other, and draw it
	$(BIN)/python -m experiments.fig3_evidence_accumulation $(ARGS)

figures: setup  ## Draw every figure again from results/
	$(BIN)/python -m figures.make_all

test: setup  ## Run the tests but for slow ones (ARGS="-k name" selects some)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not experiment" $(ARGS)

slow: setup  ## Run those: experiments in a reduced form, pages' programs, kills, drawn networks, ...
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or experiment" $(ARGS)

check: lint  ## While at work, in a minute: lint, and the tests that see most for their time
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q tests/test_layers.py \
		tests/test_golden.py tests/test_formula_25.py tests/test_losses.py tests/test_checkpoints.py

optimized: setup  ## Test numbers and bits of programs that are compiled as a user has them
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n $(WORKERS) \
		tests/test_golden.py tests/test_delayed_network.py tests/test_compiled.py::test_cells \
		tests/test_kernels.py::TestEvents $(ARGS)

lint: setup  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup  ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

dist: setup  ## Build the source distribution and the wheel, in dist/
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build

docs: $(VENV)/.docs  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## Remove .venv, caches and the built site; results/ stays
	rm -rf $(VENV) site build dist eprop.egg-info .pytest_cache .ruff_cache .hypothesis
	find eprop experiments figures tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		found=$$($(PYTHON) --version 2>/dev/null || echo "no Python at all"); \
		echo "eprop needs Python >= 3.11, but '$(PYTHON)' is $$found." >&2; \
		echo "Name another interpreter: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): a minute or two."
	$(PIP_INSTALL) '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.setup
	$(PIP_INSTALL) '.[docs]'
	@touch $@
