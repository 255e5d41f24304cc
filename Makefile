# make demo   the whole tour with the bundled model; ends with the gallery's path
# make test   ruff, mypy and all tests
# make docs   the documentation, build/site/index.html
# All make .venv first. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss-cpu and faiss-gpu install the same folder: one or the other. torch 2.13 is built for CUDA 13,
# which needs driver 580: with an older one torch computes on the CPU, and FAISS should, too.
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | cut -d. -f1 | head -n 1)
FAISS := $(shell test "$(DRIVER)" -ge 580 2>/dev/null && echo gpu || echo cpu)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Compiled modules are kept, so that the programs that tests start need not compile them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types pytest pytest-narrow pytest-long format docs docs-pictures gallery benchmarks \
	resolve-gpu peers clean

demo: $(VENV)/.installed
	$(BIN)/featviz demo --overwrite

test: lint types pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Two processes, each with one thread, slow files first (tests/conftest.py).
pytest: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Tests that depend on how kernels round, once more as an older processor computes.
pytest-narrow: $(VENV)/.installed-dev
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 \
		$(BIN)/pytest -n 2 --dist loadfile -m numeric

# What takes minutes: random kills of every long command, many models.
pytest-long: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 --dist worksteal -m long

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site that opens from the disk. The variable silences a banner.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Its pictures, by the commands below them.
docs-pictures: $(VENV)/.installed
	$(BIN)/python recipes/make_docs_pictures.py

# The committed gallery, from the bundled model, our own pictures and AlexNet itself:
# make gallery ARGS="--alexnet FILE --classes FILE"
gallery: $(VENV)/.installed
	$(BIN)/python recipes/make_gallery.py $(ARGS)

benchmarks: $(VENV)/.installed-dev
	for file in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file --quick || exit 1; done

# Whether the packages for a card go together: pip reads about 1 GB, and installs nothing.
resolve-gpu: $(VENV)/bin/pip
	$(BIN)/pip install --dry-run --ignore-installed -c constraints.txt torch==2.13.0 '.[gpu]'

# Other libraries to measure against, in an environment of their own.
peers: $(VENV)/.installed
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet -c constraints.txt torch==2.13.0
	.peers/bin/pip install --quiet -c constraints.txt -e '.[$(FAISS)]'
	.peers/bin/pip install --quiet --no-deps torch-lucent==0.1.8 kornia==0.4.1 \
		Horama==0.3.0 adv-lib==0.2.8 pyautoattack==0.2.0
	.peers/bin/pip install --quiet decorator einops future ipython tqdm

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "featviz needs Python 3.11 or newer; set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no venv here; on Debian: apt-get install python3-venv"; exit 2; }

# torch comes first and pinned, so that nothing else asks for its newest CUDA build.
$(VENV)/.torch: $(VENV)/bin/pip constraints.txt
	$(INSTALL) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[$(FAISS)]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[$(FAISS),timm,dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e '.[$(FAISS),docs]'
	@touch $@

clean:
	rm -rf $(VENV) .peers run build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
