#!/usr/bin/env bash
# Deletes jobs, and their pods with them. Snakemake calls it when it is interrupted.
exec kubectl delete job --ignore-not-found --wait=false "$@"
