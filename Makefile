# Each command does the set-up it needs in .venv, and none when nothing changed.
#   ARGS    passed on, e.g. make search ARGS="--help", make test ARGS="-k native"
#   PYTHON  creates .venv;  TORCH  what to install as PyTorch, e.g. TORCH="torch==2.10.* torchvision==0.25.*"

PYTHON ?= python3
TORCH  ?= torch==2.14.1 torchvision==0.29.1
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
# Errors only: pip's warnings speak of its own configuration.
PIP  := $(BIN)/python -m pip --disable-pip-version-check -qq
# pip hides what a build says; this tells whether there is an extension now, and fails where there has to be one.
STATUS := $(BIN)/python -c 'import os, sys; from vpdarts_fast import native; why = native.why_not(); print("[setup]", why or "native extension built"); sys.exit(why is not None and os.environ.get("VPDARTS_NATIVE") == "on")'

NATIVE_SOURCES := CMakeLists.txt setup.py build_backend.py $(shell find csrc -type f)
CPP_SOURCES    := $(filter %.cpp %.h %.cu %.cuh,$(NATIVE_SOURCES))

# What an install depends on besides files; the records below change only when these do.
BUILD_SETTINGS := CXX=$(CXX) NATIVE=$(VPDARTS_NATIVE) WERROR=$(VPDARTS_WERROR) CUDA=$(VPDARTS_CUDA) ARCHS=$(TORCH_CUDA_ARCH_LIST)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup search test check bench lint docs native clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

search: setup ## search an architecture (ARGS="--help" for the options)
	@$(BIN)/python -m vpdarts_fast.search --fused $(ARGS)

# As many processes as cores, so one thread for each; tests of more threads ask for them, and so does tests/machines.sh.
test thorough check: export OMP_NUM_THREADS ?= 1
# Processes that tests start do not compile every module anew.
test thorough check: export PYTHONDONTWRITEBYTECODE :=

test: setup ## run the tests, in as many processes as cores (ARGS="-n 0": in one)
	@$(BIN)/python -m pytest tests -m "not thorough" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

thorough: setup ## run the tests that compile kernels again and again: with sanitizers, for every GPU, with mistakes in them
	@$(BIN)/python -m pytest tests -m thorough -n logical --maxprocesses 8 --dist worksteal $(ARGS)

check: setup ## the fast tests, and style and types of what has changed: a minute
	@changed=$$(git diff --name-only --diff-filter=d HEAD -- '*.py' '*.pyi'; git ls-files -o --exclude-standard -- '*.py'); \
	if [ -n "$$changed" ]; then $(BIN)/ruff check $$changed && $(BIN)/ruff format --check $$changed; fi
	@if [ -n "$$(git diff --name-only HEAD -- vpdarts_fast pyproject.toml)" ]; then $(BIN)/mypy --strict vpdarts_fast; fi
	@$(BIN)/python -m pytest tests -q -m "not slow and not thorough" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: setup ## measure the README's table in minutes (ARGS="--full" for everything, ARGS="--csv FILE")
	@$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

lint: setup ## check style and types of Python and C++
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict vpdarts_fast
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

# Afresh, or what was built without a change would not warn again.
docs: setup ## the reference of the API, in build/docs; a docstring with a mistake is an error
	@rm -rf build/docs
	@$(BIN)/sphinx-apidoc -q --separate --module-first --tocfile index -H vpdarts_fast -o build/docs/source vpdarts_fast
	@$(BIN)/sphinx-build -q -W --keep-going -c docs build/docs/source build/docs/html
	@echo "build/docs/html/index.html"

native: setup ## rebuild the native extension; an error if that is impossible
	@rm -rf build
	@VPDARTS_NATIVE=on $(PIP) install --no-build-isolation --no-deps -e .
	@VPDARTS_NATIVE=on $(STATUS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info vpdarts_fast/_C*.so .mypy_cache .pytest_cache .ruff_cache

setup: $(VENV)/install.stamp ## set up .venv without running anything

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or later is needed; set PYTHON=")'
	@echo "[setup] creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: python3 -m venv fails (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/torch.settings: FORCE | $(VENV)/pyvenv.cfg
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/build.settings: FORCE | $(VENV)/pyvenv.cfg
	@echo '$(BUILD_SETTINGS)' | cmp -s - $@ || { rm -rf build; echo '$(BUILD_SETTINGS)' > $@; }

# First, so that nothing else pulls in another PyTorch.
$(VENV)/torch.stamp: $(VENV)/torch.settings
	@echo "[setup] installing $(TORCH) (large, takes minutes the first time)"
	@$(PIP) install $(foreach requirement,$(TORCH),'$(requirement)')
	@touch $@

# The build requirements, as pyproject.toml lists them: `--no-build-isolation` leaves them to us.
$(VENV)/build.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "[setup] installing the build tools"
	@$(PIP) install $$(sed -n "/^requires = /s/[^\"]*\(\"[^\"]*\"\)[^\"]*/\1 /gp" pyproject.toml | tr -d '"')
	@touch $@

$(VENV)/install.stamp: pyproject.toml $(NATIVE_SOURCES) $(VENV)/build.stamp $(VENV)/build.settings
	@echo "[setup] building and installing vpdarts_fast"
	@$(PIP) install --no-build-isolation -e '.[dev]'
	@$(STATUS)
	@touch $@
