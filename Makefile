# `make all` and `make test` need Debian's python3 (3.11 or 3.12), python3-venv and make; .venv is made on first use.
#
#     make all       the main job: results/world/         make lint      ruff, snakefmt, snakemake --lint
#     make test      the tests                            make tables    tables and figures from result records alone
#     make smoke     every rule, small, in minutes        make env       only the environment, .venv
#     make lock      requirements.lock, conda files       make schema    the configuration's schema and defaults
#     make env-mmdet  mmdet besides, for GenEval's official detector; mmcv from MMCV_WHEELS=FOLDER, else built, a quarter of an hour
#     make test-slurm  the smoke profile on a SLURM of one node, as root on Debian; it installs SLURM
#
# ARGS goes to snakemake or pytest: make all ARGS="--config methods=apex,fm", make test ARGS="-k config".

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.made-from-lock
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
ARGS ?=
MMCV := mmcv==2.1.0
MMCV_WHEELS ?= $(if $(wildcard ../shared/wheels/mmcv-*.whl),../shared/wheels)

.PHONY: all smoke tables test test-slurm lint env env-mmdet lock schema

all: $(STAMP)
	$(BIN)/snakemake all $(ARGS)

smoke: $(STAMP)
	$(BIN)/snakemake all pretrained --configfile workflows/config/smoke.yaml $(ARGS)

tables: $(STAMP)
	$(BIN)/snakemake tables $(ARGS)

test: $(STAMP)
	$(BIN)/pytest $(ARGS)

test-slurm: $(STAMP)
	tests/cluster/slurm.sh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflows
	$(BIN)/snakemake --lint

env: $(STAMP)

# Not in the lock: see requirements-mmdet.txt. Remaking .venv from the lock removes it again.
env-mmdet: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-mmdet.txt
	$(if $(MMCV_WHEELS),\
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-index --find-links $(MMCV_WHEELS) $(MMCV),\
	  $(BIN)/uv pip install --quiet --python $(BIN)/python setuptools==75.8.0 wheel ninja psutil && \
	  MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=2 $(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation $(MMCV))
	$(BIN)/python -c "from evaluators.geneval.mmdet_detector import official_configuration as check; check(); print('mmdet is ready')"

# uv comes from the lock's own version; everything else is checked against the lock's hashes.
$(STAMP): requirements.lock pyproject.toml
	@[ -x $(BIN)/python ] || $(if $(PYTHON),$(PYTHON),true) -c '$(SUPPORTED)' && [ -n "$(PYTHON)$(wildcard $(BIN)/python)" ] || \
	  { echo "error: found no Python 3.11 or 3.12 with venv (PYTHON is '$(PYTHON)'); on Debian or Ubuntu: apt install python3 python3-venv;" \
	  "elsewhere name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock
	$(BIN)/python workflows/envs/write.py

schema: $(STAMP)
	$(BIN)/python -m apex.config --schema workflows/schemas/config.schema.json --defaults workflows/schemas/config.defaults.yaml
