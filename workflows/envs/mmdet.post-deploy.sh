#!/usr/bin/env bash
# Snakemake runs this in the environment of mmdet.yml once it stands: mmcv from its source archive (for the CPU; FORCE_CUDA=1 and nvcc: for the
# GPU too), then mmengine and mmdet.
set -euo pipefail
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python -m pip install --quiet --target "$tools" setuptools==75.8.0 wheel==0.45.1 ninja==1.13.2
PATH="$tools/bin:$PATH" PYTHONPATH="$tools" MMCV_WITH_OPS=1 FORCE_CUDA="${FORCE_CUDA:-0}" \
  python -m pip install --quiet --no-build-isolation --no-deps mmcv==2.1.0
python -m pip install --quiet --no-deps mmengine==0.10.7 mmdet==3.3.0
python -c "import mmdet.apis"
