# Every target sets up what it needs; a second call finds it done. Python 3.11 or newer and make are all that must be there.
#   make demo    train on the embedded model and data, and show before and after
#   make lab     open the course in JupyterLab
#   make test    run every test          make check   format, lint and types
#   make bench   against TRL             make data    rebuild the embedded data and model (an hour)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Exact versions for every install, the build's own environment included.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo lab test check format bench data results clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, %s is %d.%d; name another: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, renewed when the metadata or the versions change.
$(VENV)/.with-%: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[$(subst +,$(comma),$*)]'
	@touch $@
comma := ,

demo: $(VENV)/.with-course
	$(BIN)/dpo-lab demo

lab: $(VENV)/.with-course
	$(BIN)/dpo-lab lab

check: $(VENV)/.with-course+test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.with-course+test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check
	$(BIN)/python -m pytest

bench: $(VENV)/.with-course+test+bench
	$(BIN)/python -m pytest tests/benchmarks --run-benchmarks

data: $(VENV)/.with-course
	$(BIN)/python data/build.py

results: $(VENV)/.with-course
	$(BIN)/python data/measure.py sweep
	$(BIN)/python data/measure.py seeds

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
