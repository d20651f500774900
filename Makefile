# `make demo`, `make test`, `make slow` and `make docs`, each alone: a virtual environment, an install against constraints.txt, and the job.
#   make demo PYTHON=python3.12
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"    another wheel index, here torch without CUDA
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
SITE ?= site
# Threads that wait soon sleep, as the command `stm` lets them: on a machine that others use too, those that spin take the processors.
export GOMP_SPINCOUNT ?= 2000

INSTALL = $(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt
INPUTS = pyproject.toml constraints.txt setup.py $(wildcard stm/backends/*.[ch])

.PHONY: demo test slow test-torch coverage covered lint docs fuzz

demo: $(VENV)/.demo
	$(VENV)/bin/python tools/demo.py

# Three processes of one thread on two processors: many tests wait for a server, a kill or a process of their own.
test slow: export OMP_NUM_THREADS ?= 1
test slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 3 --dist worksteal $(if $(filter slow,$@),-m slow) $(PYTEST_ARGS)

# What touches torch's own operators, on another version of it: make test-torch TORCH=2.15.0
TORCH ?= 2.15.0
TORCH_VENV ?= $(VENV)-torch-$(TORCH)
TORCH_TESTS = tests/backends tests/golden tests/contract/test_runtime.py tests/contract/test_digests.py \
	$(patsubst %,tests/unit/test_%.py,products serving training gemms waiting)
test-torch: export OMP_NUM_THREADS ?= 1
test-torch: | $(TORCH_VENV)/bin/pip
	grep -v -E "^(torch|triton)==" constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/python -m pip install $(PIP_ARGS) -c $(TORCH_VENV)/constraints.txt -e ".[dev]" "torch==$(TORCH)"
	$(TORCH_VENV)/bin/python -m pytest -n 3 --dist worksteal $(PYTEST_ARGS) $(TORCH_TESTS)

# Lists the branches that no test takes of what reads and writes folders, codes, configs and checkpoints, and fails below
# 100%: [tool.coverage] names the files, tests/cover.py the tests. CI measures in the one run of all tests:
#   make test covered PYTEST_ARGS="-p tests.cover"
coverage: $(VENV)/.dev
	$(MAKE) test PYTEST_ARGS="-p tests.cover -m covering $(PYTEST_ARGS)"
	$(MAKE) covered

covered: $(VENV)/.dev
	$(VENV)/bin/python -m coverage combine --quiet
	$(VENV)/bin/python -m coverage report

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, into $(SITE), without a network. The variable silences what mkdocs-material says of its successor, no warning about our pages.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(VENV)/bin/python -m mkdocs build --strict --site-dir $(SITE)

# Half a minute for each target, three at a time, with the same mutations every time if FUZZ_CORPUS is a new folder.
# `fuzz/run.sh MINUTES` searches on from there.
fuzz: $(VENV)/.fuzz
	FUZZ_SEED=1 FUZZ_JOBS=3 PYTHON=$(VENV)/bin/python fuzz/run.sh 0.5

# All that .ci/run needs, in one installation.
$(VENV)/.ci: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[dev,docs,fuzz,data]"
	@touch $(VENV)/.dev $(VENV)/.docs $(VENV)/.fuzz $@

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[plots]"
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.fuzz: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[fuzz,data]"
	@touch $@

$(VENV)/.docs: $(INPUTS) | $(VENV)/bin/pip
	$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/bin/pip $(TORCH_VENV)/bin/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "stm needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(patsubst %/bin/pip,%,$@)
