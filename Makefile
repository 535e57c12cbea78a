# `make all` and `make test` need Debian's python3 (3.11 or 3.12), python3-venv and make; .venv is made on first use.
#
#     make all       the main job: results/world/         make lint      ruff, snakefmt, snakemake --lint
#     make test      the tests                            make tables    tables and figures from result records alone
#     make smoke     every rule, small, in minutes        make env       only the environment, .venv
#     make lock      requirements.lock, conda files       make schema    the configuration's schema and defaults
#     make env-mmdet   mmdet beside the lock, for GenEval's official detector as published; builds mmcv (MMCV_WHEELS=FOLDER: does not)
#     make test-slurm  the smoke profile on a SLURM of one node, as root on Debian; it installs SLURM
#     make test-kubernetes   the same on a stand-in for a Kubernetes of one node, as root on Debian; it installs kubectl
#     make bench     how fast it is, as ratios, in five minutes on a machine that does nothing else (ARGS="steps latency commands")
#     make gpu       what needs a GPU, measured and checked in order of worth (ARGS="--minutes 8")
#
# ARGS goes to snakemake or pytest: make all ARGS="--config methods=apex,fm", make test ARGS="-k config".

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.made-from-lock
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
ARGS ?=

.PHONY: all smoke tables test test-slurm test-kubernetes bench gpu lint env env-mmdet lock schema

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

test-kubernetes: $(STAMP)
	tests/cluster/kubernetes.sh

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(ARGS)

gpu: $(STAMP)
	$(BIN)/python tests/gpu/measure.py --out results $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflows
	$(BIN)/snakemake --lint

env: $(STAMP)

# uv comes from the lock's own version; everything else is checked against the lock's hashes. Bytecode is compiled here, once: where
# PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would otherwise compile every library again.
$(STAMP): requirements.lock pyproject.toml
	@[ -x $(BIN)/python ] || $(if $(PYTHON),$(PYTHON),true) -c '$(SUPPORTED)' && [ -n "$(PYTHON)$(wildcard $(BIN)/python)" ] || \
	  { echo "error: found no Python 3.11 or 3.12 with venv (PYTHON is '$(PYTHON)'); on Debian or Ubuntu: apt install python3 python3-venv;" \
	  "elsewhere name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

env-mmdet: .venv/.made-mmdet

# mmcv is a wheel from MMCV_WHEELS or ../shared/wheels where one is for this Python, else built: its operators for the CPU, with
# FORCE_CUDA=1 and nvcc for the GPU too. The wheel stays in build/wheels. `make env` after a change of the lock takes mmdet away; this
# brings it back.
MMCV := mmcv==2.1.0 --hash=sha256:d387bcab66b467479b6660310e23746cfc79c6e57acf04094680adb499a5cd3f
.venv/.made-mmdet: $(STAMP) requirements-mmdet.txt requirements-mmcv-build.txt
	@set -e; wheel="mmcv-2.1.0-cp$$($(BIN)/python -c 'import sys; print(*sys.version_info[:2], sep="")')-*.whl"; \
	for folder in $(or $(MMCV_WHEELS),../shared/wheels build/wheels); do found=$$(ls $$folder/$$wheel 2>/dev/null | tail -n 1); \
	  [ -z "$$found" ] || break; done; \
	if [ -z "$${found}$(if $(MMCV_WHEELS),,build)" ]; then \
	  echo "error: $(MMCV_WHEELS): found no $$wheel; without MMCV_WHEELS it is built" >&2; exit 2; fi; \
	if [ -z "$$found" ]; then echo "building mmcv: about a quarter of an hour on two cores"; mkdir -p build/wheels; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --target build/mmcv-tools -r requirements-mmcv-build.txt; \
	  echo "$(MMCV)" > build/mmcv.txt; \
	  PATH="$(CURDIR)/build/mmcv-tools/bin:$$PATH" PYTHONPATH="$(CURDIR)/build/mmcv-tools" MMCV_WITH_OPS=1 FORCE_CUDA=$(or $(FORCE_CUDA),0) \
	    $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --require-hashes \
	    --wheel-dir build/wheels -r build/mmcv.txt; \
	  found=$$(ls build/wheels/$$wheel); fi; \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps "$$found"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r requirements-mmdet.txt
	$(BIN)/python -c "import mmdet.apis"
	touch $@

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock
	$(BIN)/python workflows/envs/write.py

schema: $(STAMP)
	$(BIN)/python -m apex.config --schema workflows/schemas/config.schema.json --defaults workflows/schemas/config.defaults.yaml
