# Everything happens in a local virtual environment, set up by whichever target needs it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# What the compiled module is made of.
RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs')

# What pip has to say is only of interest when it fails.
export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-memory crashes trials fuzz docs develop clean
.PHONY: lint-rust lint-python test-rust test-models test-bindings test-python test-gpu bench-gpu

help: ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(STAMPS)/diffusers ## Runs the main job: real images of several users on two devices
	$(BIN)/python -m coresident demo

develop: $(STAMPS)/test ## The environment to work in, with the module built

# One after the other; `make -j2 test` has pytest beside what cargo does.
test: lint test-rust test-models test-bindings test-python ## Formatting, lints and every test

lint: lint-rust lint-python ## Formatting, lints, types, and the stub against the module

lint-rust:
	cargo fmt --all --check
	cargo clippy --all-targets --features python -- -D warnings
	cargo clippy --all-targets --features model -- -D warnings
	cargo clippy -p pretend_nvml -p pretend_cuda --all-targets -- -D warnings

lint-python: $(STAMPS)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/python -m mypy.stubtest coresident._core

test-rust: ## The core, without Python
	cargo test --lib --tests
	cargo test -p pretend_cuda
	cargo test --doc

test-models: ## The core's concurrency, every interleaving
	cargo test --features model --test models

test-bindings: ## The bindings compile as a library and their documentation builds
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features python --document-private-items -q

test-python: $(STAMPS)/test $(STAMPS)/quantisers ## The package, as its users call it
	$(BIN)/python -m pytest -q --ignore tests/python/test_quantised.py
	PYTHONPATH=$(VENV)/quantisers $(BIN)/python -m pytest -q tests/python/test_quantised.py
	CORESIDENT_TEST_DEVICE=virtual $(BIN)/python -m pytest -q tests/gpu

test-gpu: $(STAMPS)/test ## What only a machine with a CUDA GPU can show
	$(BIN)/python -m pytest tests/gpu

bench-gpu: $(STAMPS)/test $(STAMPS)/released ## Weights on their way to a GPU, beside what torch does
	$(BIN)/python benches/gpu.py

bench: $(STAMPS)/test $(STAMPS)/released ## Speeds, each beside the standard library in the same run
	cargo bench --bench core
	$(BIN)/python -m pytest benches/python

bench-memory: $(STAMPS)/test $(STAMPS)/released ## What weights cost in host memory, beside other loaders
	$(BIN)/pip install "matplotlib>=3.8"
	$(BIN)/python benches/host_memory.py --out benches/results/host-memory

crashes: $(STAMPS)/test ## A thousand processes with a durable queue, each killed at a random instant
	cd tests/python && folder=$$(mktemp -d) && ../../$(BIN)/python queue_crash.py --rounds 1000 $$folder && rm -r $$folder

trials: $(STAMPS)/test ## Threads that load models at once, 200 trials of each mix, without and with
	cd tests/python && ../../$(BIN)/python loading_trials.py --out ../../benches/results/loading-trials.md

fuzz: ## The readers of files against whatever bytes there can be, a minute each
	cd fuzz && for target in safetensors gguf index; do \
		cargo +nightly fuzz run $$target -- -max_total_time=60 || exit 1; \
	done

docs: $(STAMPS)/module ## The reference, in docs/api
	$(BIN)/pip install "pdoc>=15"
	$(BIN)/pdoc coresident coresident._core coresident.errors -o docs/api
	@echo "open docs/api/index.html"

# Beside the environment and not in it: torch and diffusers warn wherever these are.
$(STAMPS)/quantisers: | $(STAMPS)/test
	$(BIN)/pip install --no-deps --target $(VENV)/quantisers "torchao>=0.15" "optimum-quanto>=0.2.7" ninja
	@touch $@

clean: ## Everything that was made
	rm -rf $(VENV) target docs/api

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip "maturin>=1.9,<2"
	@mkdir -p $(STAMPS) && touch $@

# With what the profile for development has, which takes a third of the time to build.
$(STAMPS)/module: $(STAMPS)/venv $(RUST)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --quiet
	@rm -f $(STAMPS)/released && touch $@

# As wheels have it, in the other's place, for whoever measures.
$(STAMPS)/released: $(STAMPS)/venv $(RUST) | $(STAMPS)/module
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet
	@touch $@

# The package is there already: what is installed are the libraries that an extra names.
$(STAMPS)/diffusers $(STAMPS)/test: pyproject.toml | $(STAMPS)/module
	$(BIN)/pip install "coresident[$(@F)]"
	@touch $@
