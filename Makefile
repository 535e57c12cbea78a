# A bare `make` prints the targets. `make all` and `make test` need Debian's python3 (3.11 or 3.12), python3-venv and make; .venv is made on
# first use. ARGS goes to snakemake or pytest: make all ARGS="--config methods=apex,fm", make test ARGS="-n 0 -k config"
# (-n is the number of processes; 0 runs the tests in this one).

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.made-from-lock
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
ARGS ?=

.PHONY: help all smoke tables test test-all test-slow test-slurm test-kubernetes bench gpu lint env env-mmdet lock schema

# Of every target that has a text behind `##`, its name and the text.
help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1 \2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while read -r word name text; do printf '  %s %-16s %s\n' "$$word" "$$name" "$$text"; done
	@echo 'ARGS goes to snakemake or pytest: make all ARGS="--config methods=apex,fm". Everything else: snakemake -n TARGET, README.md.'

all: $(STAMP) ## the main results, tables and figures: results/world/; 13 minutes on two idle cores
	$(BIN)/snakemake all $(ARGS)

smoke: $(STAMP) ## every rule, small: results/smoke/, whose numbers mean nothing; a few minutes
	$(BIN)/snakemake all pretrained --configfile workflows/config/smoke.yaml $(ARGS)

tables: $(STAMP) ## tables and figures from the result records that are there; seconds
	$(BIN)/snakemake tables $(ARGS)

test: $(STAMP) ## the fast tests, on as many processes as there are cores; 8 minutes on two
	$(BIN)/pytest -n logical -m "not slow" $(ARGS)

test-slow: $(STAMP) ## the slow tests alone: whole workflows, trainings of several processes; 10 minutes on two cores
	$(BIN)/pytest -n logical -m slow $(ARGS)

test-all: $(STAMP) ## both
	$(BIN)/pytest -n logical $(ARGS)

test-slurm: $(STAMP) ## the smoke profile on a SLURM of one node, as root on Debian, which it installs
	tests/cluster/slurm.sh

test-kubernetes: $(STAMP) ## the same on a stand-in for a Kubernetes of one node; it installs kubectl
	tests/cluster/kubernetes.sh

bench: $(STAMP) ## how fast it is, as ratios: results/bench/; two minutes on a machine that does nothing else
	$(BIN)/python -m tests.bench $(ARGS)

gpu: $(STAMP) ## what needs a GPU, measured and checked in order of worth; as long as ARGS="--minutes 8" says
	$(BIN)/python tests/gpu/measure.py --out results $(ARGS)

lint: $(STAMP) ## ruff, snakefmt and snakemake --lint; seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflows
	$(BIN)/snakemake --lint

env: $(STAMP) ## only the environment, .venv

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
	$(BIN)/python -m compileall -q apex evaluators paper_tables workflows
	touch $@

env-mmdet: .venv/.made-mmdet ## mmdet beside the lock, for GenEval's official detector; it builds mmcv, a quarter of an hour, without MMCV_WHEELS=FOLDER

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

lock: $(STAMP) ## requirements.lock and the conda files, after a change of pyproject.toml; seconds
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock
	$(BIN)/python workflows/envs/write.py

schema: $(STAMP) ## the configuration's schema and defaults, after a change of apex/config.py; seconds
	$(BIN)/python -m apex.config --schema workflows/schemas/config.schema.json --defaults workflows/schemas/config.defaults.yaml
