# make train | make test | make quick (without the slow tests): each makes .venv from constraints.txt if it is missing, then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STEPS ?= 300000
ARGS ?=

.PHONY: train test quick

train: $(VENV)/ready
	@$(BIN)/python agents/ppo.py --env-id HalfCheetah-v5 --optimizer scaled-adahesscale --total-timesteps $(STEPS) $(ARGS)

test: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 $(ARGS)

quick: $(VENV)/ready
	$(BIN)/pytest -n 2 -m "not slow" $(ARGS)

# The stamp is written last, so an install that was cut short is done again.
$(VENV)/ready: constraints.txt pyproject.toml
	@echo "making $(VENV) from constraints.txt (two minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
