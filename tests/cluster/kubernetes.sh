#!/usr/bin/env bash
# The smoke profile on a stand-in for a Kubernetes of one node and one GPU (kube_api.py), through the real kubectl: `make test-kubernetes`. On Debian,
# as root, for a pod is a mount namespace; it installs kubectl. The checkout is copied to the cluster's volume, which is mounted at /apex.
set -euo pipefail
cd "$(dirname "$0")/../.."
plugin=$(grep -o 'snakemake-executor-plugin-cluster-generic==[0-9.]*' profiles/kubernetes/config.yaml)

[ "$(id -u)" = 0 ] || { echo "error: tests/cluster/kubernetes.sh: found user $(id -un), expected root: pods are mount namespaces" >&2; exit 2; }
if ! command -v kubectl > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client > /dev/null
fi
work=$(mktemp -d)
mkdir "$work"/{volume,plugin}

stop() {
  [ -z "${server:-}" ] || kill "$server"
  [ -z "${made:-}" ] || rmdir /apex
  if [ -n "${passed:-}" ]; then rm -rf "$work"; else echo "kept: $work" >&2; fi
}
trap stop EXIT
[ -d /apex ] || { mkdir /apex; made=yes; }

git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory "$work/volume"
.venv/bin/uv pip install --quiet --python .venv/bin/python --target "$work/plugin" --no-deps "$plugin"  # Snakemake brings what it needs

.venv/bin/python tests/cluster/kube_api.py "apex=$work/volume" "$work/port" "$work/ended.jsonl" 2> "$work/cluster.log" &
server=$!
for _ in $(seq 50); do [ -s "$work/port" ] && break || sleep 0.2; done
cat > "$work/kubeconfig" << CONF
{apiVersion: v1, kind: Config, current-context: test, users: [{name: test, user: {}}],
 clusters: [{name: test, cluster: {server: "http://127.0.0.1:$(cat "$work/port")"}}], contexts: [{name: test, context: {cluster: test, user: test}}]}
CONF

# What a user types, where the volume is mounted. The first call is killed once some jobs have ended and others run; the second goes on.
unshare --mount bash -euo pipefail -c '
  mount --bind "$1/volume" /apex
  cd /apex
  make env
  export KUBECONFIG=$1/kubeconfig PYTHONPATH=$1/plugin
  call=(.venv/bin/snakemake all --profile profiles/kubernetes --configfile workflows/config/smoke.yaml --latency-wait 5)
  setsid "${call[@]}" > "$1/killed.log" 2>&1 &
  until [ "$(grep -c . "$1/ended.jsonl" 2> /dev/null)" -ge 4 ] 2> /dev/null; do kill -0 $! && sleep 0.2; done
  kill -KILL -- -$!
  "${call[@]}"
' machine "$work" || { tail -n 50 "$work/killed.log" "$work/cluster.log" >&2; exit 1; }

rows=$(grep -c geneval/overall "$work/volume/results/smoke/metrics.csv")
.venv/bin/python - "$work/ended.jsonl" "$rows" << 'CHECK'
import collections, json, sys

ended = [json.loads(line) for line in open(sys.argv[1])]
by_name = collections.defaultdict(list)
for job in ended:
    by_name[job["name"]].append(job["code"])
replaced = [name for name, codes in by_name.items() if len(codes) > 1]
gpus, rows = sum(bool(job["asked"].get("nvidia.com/gpu")) for job in ended), int(sys.argv[2])
print(f"{len(ended)} jobs went through the cluster, {gpus} of them with a GPU, for {len(by_name)} things to make; "
      f"replaced after the first call was killed: {', '.join(replaced) or 'none'}; {rows} GenEval scores in metrics.csv")
assert all(codes[-1] == 0 for codes in by_name.values()), by_name
assert len(by_name) >= 10 and gpus >= 4 and rows >= 4
assert len(ended) <= len(by_name) + 4, "more was made twice than ran when it was killed: the node has four CPUs"
CHECK
passed=yes
