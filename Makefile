# Every target sets up what it needs on a fresh machine: virtual environment, dependencies, native build.
# Prerequisites: Python >= 3.10 with venv, Rust >= 1.89, a C++17 compiler (see README.md).

VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
PYTHON ?= python3
TORCH  ?= 2.15.0
# torch-sys asks `python3` for its libtorch: it has to find the one of this environment.
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Another value makes cargo build torch-sys again.
export LIBTORCH_USE_PYTORCH := $(TORCH)

SOURCES := Cargo.toml Cargo.lock build.rs pyproject.toml $(shell find src .cargo -type f)
STAMP   := $(VENV)/.torch
NATIVE  := $(VENV)/.native
# Where `cargo test` finds libtorch at run time.
LIBTORCH = $$($(BIN)/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent / "lib")')

.PHONY: help build demo test test-rust test-python test-full lint format fuzz sanitize bench
.PHONY: wheel torch-matrix gpu-bundle docs notebooks clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(NATIVE) ## virtual environment, dependencies, native module

demo: $(NATIVE) ## post-train a tiny CLIP and measure what it gains and loses, two to four minutes on two cores
	$(BIN)/diva-rs demo

test: test-rust test-python ## everything that a change must pass

test-rust: $(STAMP)
	LD_LIBRARY_PATH=$(LIBTORCH) cargo test --quiet

test-python: $(NATIVE)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m mypy.stubtest diva_rs._native

test-full: $(NATIVE) ## the tests, and what takes longer: `pip install .` into an empty environment
	$(MAKE) test
	$(BIN)/python -m pytest -m "slow and not parity"
	$(BIN)/python -m lab published-sizes

lint: $(NATIVE) docs ## formatting, clippy, ruff, mypy, the documentation: warnings are errors
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --release --features extension-module -- -D warnings
	$(BIN)/ruff format --check python lab tests notebooks docs conftest.py build_backend.py
	$(BIN)/ruff check python lab tests notebooks docs conftest.py build_backend.py
	$(BIN)/mypy

format: $(NATIVE) ## format and fix what can be fixed mechanically
	cargo fmt
	$(BIN)/ruff check --fix python lab tests notebooks docs conftest.py build_backend.py
	$(BIN)/ruff format python lab tests notebooks docs conftest.py build_backend.py

fuzz: $(NATIVE) ## nightly: 12,000 damaged files, 20,000 hostile calls of the native module
	cd tests && $(BIN)/python -m fuzz files --cases 12000
	cd tests && $(BIN)/python -m fuzz native --cases 20000

# torch-sys's C++ stays as it is (gcc's sanitizer is another than rustc's), but its memory is watched: the allocator is.
sanitize: $(STAMP) ## the Rust tests under AddressSanitizer: src/slices.rs and everything that reads through it
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CXXFLAGS=-fno-sanitize=address ASAN_OPTIONS=detect_leaks=0 \
	LD_LIBRARY_PATH=$(LIBTORCH) cargo test --lib --target x86_64-unknown-linux-gnu --target-dir target/sanitize

SIZE ?= microworld

bench: $(NATIVE) ## the step against plain PyTorch, as ratios within one run; SIZE="half published" for more
	$(BIN)/python -m lab bench --size $(SIZE) --output benches/results

wheel: $(NATIVE) ## a wheel for this Python and torch in dist/; libtorch is not in it, but that of the installed torch
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

torch-matrix: $(NATIVE) ## build, install and try beside every supported torch: about ten minutes and 10 GB for each
	$(BIN)/python -m lab torch-matrix

gpu-bundle: ## a folder for a GPU machine without Rust and network: make gpu-bundle PYTHON=3.12 TORCH=2.11
	python3 -m lab.gpu_bundle --python $(PYTHON:python%=%) --torch $(TORCH)

docs: $(NATIVE) ## the documentation as a site, build/site/index.html: links, spelling and code blocks are checked
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md CODE_OF_CONDUCT.md docs python/diva_rs src --skip '*.so,*.svg'
	$(BIN)/python -m pytest tests/package/test_readme.py tests/package/test_reference.py
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/site

notebooks: $(NATIVE) ## run the notebooks at full settings and keep their outputs: about ten minutes on one core
	$(BIN)/python notebooks/execute.py

clean: ## forget the build and the environment
	rm -rf target $(VENV) python/diva_rs/*.so

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch==$(TORCH)" "maturin>=1.8,<2" numpy setuptools wheel
	touch $@

$(NATIVE): $(STAMP) $(SOURCES)
	maturin develop --release --extras dev --quiet
	touch $@
