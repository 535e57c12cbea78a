#!/usr/bin/env bash
# Prints running, success or failed for one job. Snakemake asks again while it says running, so also where the cluster does not answer.
set -euo pipefail
name=$1
job=$(kubectl get job "$name" --ignore-not-found --output 'jsonpath={.metadata.name}{range .status.conditions[?(@.status=="True")]} {.type}{end}') ||
  { echo running; exit; }
case "$job " in
  *' Complete '*) echo success ;;
  *' Failed '*) echo failed ;;
  ' ') echo "job $name is gone: it was deleted, or a day has passed since it ended" >&2; echo failed ;;
  *) echo running ;;
esac
