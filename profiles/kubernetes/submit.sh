#!/usr/bin/env bash
# Creates one Kubernetes job and prints its name. Snakemake calls it: rule, CPUs, memory in MB, GPUs, minutes, what the job makes, its script.
# Yours to change: the volume's claim and path, the image (bash, and Python where .venv was made with it; for GPUs what the driver needs), and
# whatever your cluster wants of a pod (tolerations, a node selector, a priority class).
set -euo pipefail
rule=$1 cpus=$2 mem_mb=$3 gpus=$4 minutes=$5 output=$6 script=$7

# What makes the same files has the same name: a job that a killed Snakemake left running is ended first, with its pod, and not doubled.
name=${rule//_/-}-$(sha1sum <<< "$PWD $output" | head -c 10)
kubectl delete job "$name" --ignore-not-found --cascade=foreground --wait=false >&2
while [ -n "$(kubectl get job "$name" --ignore-not-found --output name)" ]; do sleep 1; done

kubectl create --output name --filename - << JOB | sed 's,.*/,,'
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
  labels: {app: apex}
spec:
  backoffLimit: 0                     # Snakemake tries again (retries in config.yaml)
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels: {app: apex}
    spec:
      restartPolicy: Never
      activeDeadlineSeconds: $((60 * minutes))  # the pod's, which does not count the time in the queue; the job's would
      containers:
        - name: job
          image: python:3.11-bookworm
          command: [bash, "$script"]
          resources:
            requests: {cpu: "$cpus"}
            limits: {memory: "${mem_mb}M", nvidia.com/gpu: "$gpus"}  # what has a limit alone requests as much
          volumeMounts:
            - {name: volume, mountPath: /apex}
            - {name: shared-memory, mountPath: /dev/shm}
      volumes:
        - {name: volume, persistentVolumeClaim: {claimName: apex}}
        - {name: shared-memory, emptyDir: {medium: Memory}}          # 64 MB without it: too little for several processes
JOB
