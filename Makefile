# `make` alone lists the targets. The environment is made once, in .venv, and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# In one command with the package: pip then keeps this torch instead of fetching another build for a dependency.
TORCH := torch==2.13.0
# Those that need no GPU; each is a module of bench/ and explains itself with --help.
BENCHMARKS := train_step decode checkpoint_load
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-serving

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v < (3, 13) and f"PYTHON is Python {v[0]}.{v[1]}; ernie45 needs 3.10, 3.11 or 3.12: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) --editable '.[test]'
	@touch $@

demo: $(STAMP) ## ask the tiny model about a picture in the terminal, then chat in the browser; PORT=8180
	@$(BIN)/ernie45 demo $(if $(PORT),--port $(PORT))

test: $(STAMP) ## ruff, pyright and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

bench: $(STAMP) ## the benchmarks of bench/ that need no GPU; results go to bench/results/
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m bench.$$name || exit 1; done

# The judges need other packages than we do: JUDGES is the bin folder of an environment with guidellm, lm-eval[api] and
# transformers[serving]; AIPERF is the command aiperf.
bench-serving: $(STAMP) ## the server: peer, overhead, prefix, memory, faults, tools; JUDGES=DIR/bin AIPERF=DIR/bin/aiperf
	@test -n "$(JUDGES)" -a -n "$(AIPERF)" || { echo "give JUDGES=DIR/bin and AIPERF=DIR/bin/aiperf; see docs/serving.md, Speed"; exit 1; }
	$(BIN)/python -m bench.serving --judges $(JUDGES) --plot
	for name in overhead prefix soak faults; do $(BIN)/python -m bench.$$name || exit 1; done
	$(BIN)/python -m bench.outsiders --judges $(JUDGES) --aiperf $(AIPERF)
