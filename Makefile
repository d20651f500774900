# `make demo`, `make test` and `make docs`, each alone: a virtual environment, an install against constraints.txt, and the job.
#   make demo PYTHON=python3.12
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"    another wheel index, here torch without CUDA
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
SITE ?= site
# Threads that wait soon sleep, as the command `stm` lets them: on a machine that others use too, those that spin take the processors.
export GOMP_SPINCOUNT ?= 2000

# The tests that cover them, in tests/unit.
COVERING = artifact artifact_failures atomic atomic_leftovers config config_round_trip claims class_names tensors \
	provenance image_size given_names hidden branches

INSTALL = $(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt
INPUTS = pyproject.toml constraints.txt setup.py $(wildcard stm/backends/*.[ch])

.PHONY: demo test lint docs coverage

demo: $(VENV)/.demo
	$(VENV)/bin/python tools/demo.py

# Three processes of one thread on two processors: many tests wait for a server, a kill or a process of their own.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 3 --dist worksteal $(PYTEST_ARGS)

# Every branch of what reads and writes folders, codes, configs and checkpoints ([tool.coverage] names the files). It
# fails below 100%.
coverage: export OMP_NUM_THREADS ?= 1
coverage: $(VENV)/.dev
	$(VENV)/bin/python -m coverage run -m pytest -n 0 -q tests/unit/checkpoint $(wildcard $(COVERING:%=tests/unit/test_%.py))
	$(VENV)/bin/python -m coverage report

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, into $(SITE), without a network. The variable silences what mkdocs-material says of its successor, no warning about our pages.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(VENV)/bin/python -m mkdocs build --strict --site-dir $(SITE)

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[plots]"
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.docs: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "stm needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
