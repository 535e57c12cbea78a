#!/usr/bin/env bash
# The smoke profile on a SLURM of one node, with a stand-in for its GPU: `make test-slurm`. On Debian, as root; it installs SLURM and leaves it
# stopped. Everything that it makes is in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
plugin=snakemake-executor-plugin-slurm==2.8.0

[ "$(id -u)" = 0 ] || { echo "error: tests/cluster/slurm.sh: found user $(id -un), expected root: it starts SLURM's daemons" >&2; exit 2; }
if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
fi
work=$(mktemp -d)
root=$PWD
host=$(hostname -s)
mkdir -p "$work"/{plugin,state,spool,run} /run/munge
.venv/bin/uv pip install --quiet --python .venv/bin/python --target "$work/plugin" "$plugin"

# Jobs look for it where SLURM was built to: a machine that belongs to a cluster is left alone.
conf=/etc/slurm/slurm.conf
if [ -e $conf ] && ! grep -q ClusterName=one-node-test $conf; then
  echo "error: $conf: found another cluster's configuration, expected none; run this on a machine of its own" >&2
  exit 2
fi
cat > $conf << CONF
ClusterName=one-node-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=3600
ReturnToService=2
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/run/slurmctld.pid
SlurmdPidFile=$work/run/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((2 * $(nproc))) RealMemory=256000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "NodeName=$host Name=gpu File=/dev/null" > /etc/slurm/gres.conf

# The folder holds the daemons' process numbers and logs: it goes after them, and stays where something failed.
stop() {
  for name in slurmd slurmctld; do
    pid=$(cat "$work/run/$name.pid" 2> /dev/null) || continue
    kill "$pid" || continue
    for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.2; done
  done
  [ -n "${munge:-}" ] && pkill -x munged || true
  rm -f $conf /etc/slurm/gres.conf
  if [ -n "${passed:-}" ]; then rm -rf "$work"; else echo "kept: $work" >&2; fi
}
trap stop EXIT
chown munge: /run/munge
if ! pgrep -x munged > /dev/null; then
  [ -s /etc/munge/munge.key ] || { head -c 1024 /dev/urandom > /etc/munge/munge.key; chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
  runuser -u munge -- /usr/sbin/munged
  munge=started
fi
slurmctld
slurmd
for _ in $(seq 60); do [ "$(sinfo --noheader --format=%T)" = idle ] && break || sleep 1; done
sinfo

export PYTHONPATH=$work/plugin
(cd "$work" && "$root/.venv/bin/snakemake" all --snakefile "$root/Snakefile" --profile "$root/profiles/slurm" \
  --configfile "$root/workflows/config/smoke.yaml" --slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 \
  --latency-wait 5)

scontrol show jobs > "$work/jobs.txt"
jobs=$(grep -c JobId= "$work/jobs.txt")
done=$(grep -c JobState=COMPLETED "$work/jobs.txt")
gpus=$(grep -c gres:gpu "$work/jobs.txt" || true)
rows=$(grep -c geneval/overall "$work/results/smoke/metrics.csv")
echo "$jobs jobs went through SLURM, $done completed, $gpus of them with a GPU; $rows GenEval scores in metrics.csv"
[ "$jobs" -ge 10 ] && [ "$jobs" = "$done" ] && [ "$gpus" -ge 4 ] && [ "$rows" -ge 4 ]
passed=yes
