# One command each, on a machine with Python 3.11 and make: everything lives in .venv, which is made when it is missing or out of date.
# Another interpreter: make PYTHON=python3.12 ...   More arguments: make test ARGS="-k tracker", make demo ARGS="--on local"
PYTHON ?= python3
ARGS ?=
BASE ?= HEAD~1
PARALLEL := -n logical --maxprocesses 4 --dist loadgroup
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ASV := $(BIN)/python -m asv

# The environment is ready for this folder; if the checkout was moved, or its interpreter is gone, it is made anew.
HOME_OF_VENV := $(shell $(BIN)/python -c '' 2>/dev/null && cat $(READY) 2>/dev/null)
ifneq "$(HOME_OF_VENV)" "$(CURDIR)"
.PHONY: $(READY)
endif

.PHONY: help venv venv-all docs demo test test-all campaigns mutants lint kernels bench bench-full bench-compare bench-peers release clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## count real and generated text on Ray, plain and voted, with faults injected
	@$(BIN)/quoreduce demo $(ARGS)

test: $(READY) kernels  ## run the tests, those on Ray last; but not those marked nightly
	@.ci/system-packages
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(READY) kernels  ## all tests, those marked nightly too, and larger samples of the campaigns
	@.ci/system-packages
	@$(BIN)/python -m pytest $(PARALLEL) --nightly $(ARGS)

CAMPAIGNS = $(shell grep -l '^if __name__' tests/campaigns/*.py)
campaigns: $(READY) kernels  ## every campaign at full size, docs/design/campaigns.md; one: CAMPAIGNS=tests/campaigns/fuzz.py
	@for campaign in $(CAMPAIGNS); do echo "== $$campaign $(ARGS)"; $(BIN)/python $$campaign $(ARGS) || exit 1; done

mutants: $(READY) kernels  ## change tracker/ and data/ in thousands of small ways: do tests see it? (ARGS="--sample 10%", or --help)
	@$(BIN)/python tests/campaigns/mutants.py $(ARGS)

lint: $(READY)  ## style, types, who imports whom, and sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/rules.py
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs  ## build the documentation site, strictly, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

bench: kernels  ## measure kernels, jobs and GridMix plain and voted, and Ray, on 256 MB (nothing is stored)
	@QUOREDUCE_BENCH_SIZE=quick $(BIN)/python -m bench.data
	@$(ASV) machine --yes >/dev/null
	@QUOREDUCE_BENCH_SIZE=quick $(ASV) run --quick --show-stderr --environment existing $(ARGS)

bench-full: kernels  ## the same on 1 GB, of the last commit, in an environment of its own; results and pages go to .asv
	@QUOREDUCE_BENCH_SIZE=full $(BIN)/python -m bench.data
	@$(ASV) machine --yes >/dev/null
	QUOREDUCE_BENCH_SIZE=full PIP_CONSTRAINT="$(CURDIR)/requirements-dev.txt" $(ASV) run --show-stderr $(ARGS) 'HEAD^!'
	$(ASV) publish

bench-compare: kernels  ## the last commit against BASE=HEAD~1 or another, on 256 MB; some of it: ARGS="--bench kernels"
	@QUOREDUCE_BENCH_SIZE=quick $(BIN)/python -m bench.data
	@$(ASV) machine --yes >/dev/null
	QUOREDUCE_BENCH_SIZE=quick PIP_CONSTRAINT="$(CURDIR)/requirements-dev.txt" \
	  $(ASV) continuous --show-stderr --factor 2 $(ARGS) $(BASE) HEAD

bench-peers: $(VENV)/peers kernels  ## compare with Spark, Hadoop, Ray Data, Dask, DuckDB, Polars, coreutils on 256 MB (ARGS="--size full": 1 GB)
	@$(BIN)/python -m bench.peers $(ARGS)

release: $(READY)  ## build sdist and wheel, check them, and tag the commit; nothing is uploaded
	@.ci/release $(BIN)/python

venv: $(READY)  ## make .venv only

venv-all: $(VENV)/all  ## make .venv with all that tests can use: other engines, the documentation's tools, and hardware TPMs

clean:  ## delete .venv and everything else that the targets made here
	rm -rf $(VENV) .asv .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find engine kernels gridmix bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

kernels: $(READY)
	@$(BIN)/python -c "from quoreduce.protocol.compile import ensure_kernels; ensure_kernels(print)"

$(READY): pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "quoreduce needs Python 3.11 or later as $(PYTHON); or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing python3-venv ..."; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null; \
	else echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; fi
	@echo "installing quoreduce and its tools into $(VENV) (once; 1 to 2 minutes) ..."
	@[ "$(HOME_OF_VENV)" = "$(CURDIR)" ] || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --constraint requirements-dev.txt --editable '.[dev]'
	@pwd -P > $@

$(VENV)/all: $(VENV)/peers
	@echo "building tpm2-pytss ..."
	@$(PIP) install --constraint requirements-dev.txt --editable '.[dev,docs,peers,tpm]'
	@touch $@

$(VENV)/peers: $(READY)
	@echo "installing the engines to compare with ..."
	@$(PIP) install --constraint requirements-dev.txt --editable '.[dev,peers]'
	@touch $@

$(VENV)/docs: $(READY)
	@echo "installing the documentation's tools ..."
	@$(PIP) install --constraint requirements-dev.txt --editable '.[dev,docs]'
	@touch $@
