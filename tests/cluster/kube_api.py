"""A stand-in for a Kubernetes cluster of one node with one GPU, as far as kubectl needs one to create, ask for and delete jobs.

    python tests/cluster/kube_api.py CLAIM=FOLDER PORT_FILE ENDED_FILE

It takes a job or refuses it by the rules of the real API that a job's description can break (names, volumes and their mounts,
quantities, a GPU asked for without a limit), starts it when what it asks for is free on the node, and runs its command in a mount
namespace of its own: nothing of the caller's environment, the claim's folder at its mount path. A pod is ended at its deadline.
Nobody is held to the other limits, and an image is not looked at: a pod's root is this machine's. ENDED_FILE gets a line of JSON for
each job that ended.

Sources: the API reference of batch/v1 Job and core/v1 Pod, "Schedule GPUs" and "Resource management for pods and containers", of
kubernetes.io.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
NODE = {"cpu": 4.0, "memory": 256e9, "nvidia.com/gpu": 1.0}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
POD = 'set -e; while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done; shift; cd /; exec "$@"'
JOBS = {"name": "jobs", "singularName": "job", "namespaced": True, "kind": "Job", "verbs": ["create", "delete", "get", "list", "watch"]}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "batch",
                "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
            }
        ],
    },
    # The server checks fields itself, so kubectl need not.
    "/openapi/v3": {"paths": {"apis/batch/v1": {"serverRelativeURL": "/openapi/v3/apis/batch/v1"}}},
    "/openapi/v3/apis/batch/v1": {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1"},
        "paths": {
            "/apis/batch/v1/namespaces/{namespace}/jobs/{name}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": {"group": "batch", "version": "v1", "kind": "Job"},
                }
            }
        },
    },
    "/apis/batch/v1": {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "batch/v1", "resources": [JOBS]},
}


class Refused(Exception):
    """An answer that is an error: HTTP status, reason and message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


def invalid(message: str) -> Refused:
    return Refused(422, "Invalid", message)


def quantity(value: Any) -> float:
    """A resource quantity as a number: `950m` is 0.95, `8000M` 8e9."""
    found = QUANTITY.fullmatch(value if isinstance(value, str) else str(value))
    if not found:
        raise invalid(f"quantities must match the regular expression, found {value!r}")
    return float(found[1]) * UNITS[found[2] or ""]


def label(name: Any, where: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(f"{where}: Invalid value: {name!r}: a lowercase RFC 1123 label is expected")
    return name


class Pod:
    """A job's only pod, checked as the API checks it.

    Raises:
        Refused: the API would not take the job, or the pod would wait without end.
    """

    def __init__(self, job: dict[str, Any], claims: dict[str, str]) -> None:
        spec = job["spec"]["template"]["spec"]
        if spec.get("restartPolicy") not in ("Never", "OnFailure"):
            raise invalid("spec.template.spec.restartPolicy: Required value: valid values: OnFailure, Never")
        (container,) = spec["containers"]
        label(container["name"], "containers.name")
        volumes = {label(volume["name"], "volumes.name"): volume for volume in spec.get("volumes", [])}
        self.mounts: list[str] = []
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise invalid(f"volumeMounts.name: Not found: {mount['name']!r}")
            claim = volumes[mount["name"]].get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None:
                if claim not in claims:
                    raise invalid(f"persistentvolumeclaim {claim!r} not found")
                self.mounts += [claims[claim], mount["mountPath"]]
        limits = {name: quantity(value) for name, value in container.get("resources", {}).get("limits", {}).items()}
        asked = {name: quantity(value) for name, value in container.get("resources", {}).get("requests", {}).items()}
        for name, value in asked.items():
            if "/" in name and limits.get(name) != value:
                raise invalid(f"resources.limits: Required value: Limit must be set for non overcommitable resources: {name}")
            if value > limits.get(name, value):
                raise invalid(f"resources.requests: Invalid value: {value}: must be less than or equal to {name} limit of {limits[name]}")
        self.asked = limits | asked
        for name, value in self.asked.items():
            if value > NODE.get(name, 0):
                raise invalid(f"0/1 nodes are available: insufficient {name}: {value} of {NODE.get(name, 0)}")
        self.command = [*container.get("command", []), *container.get("args", [])]
        if not self.command or not all(isinstance(word, str) for word in self.command):
            raise invalid(f"containers.command: found {self.command}")
        self.deadline: float | None = spec.get("activeDeadlineSeconds")
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None

    def start(self) -> None:
        command = ["unshare", "--mount", "sh", "-c", POD, "pod", *self.mounts, "--", *self.command]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=ENVIRONMENT, start_new_session=True)

    def wait(self) -> int:
        try:
            return self.process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self.stop()
            return self.process.wait() or 1

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


class Cluster:
    """Jobs by name, in the order in which they came."""

    def __init__(self, claims: dict[str, str], ended: Path) -> None:
        self.claims, self.ended = claims, ended
        self.lock = threading.RLock()
        self.jobs: dict[str, tuple[dict[str, Any], Pod]] = {}

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        metadata = job["metadata"]
        name = metadata.setdefault("name", metadata.get("generateName", "") + uuid4().hex[:5])
        label(name, "metadata.name")
        with self.lock:
            if name in self.jobs:
                raise Refused(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            self.jobs[name] = job, Pod(job, self.claims)
            self.schedule()
        return job

    def schedule(self) -> None:
        """Starts what fits; the lock is the caller's."""
        pods = {name: pod for name, (_, pod) in self.jobs.items()}
        running = [pod for pod in pods.values() if pod.process and pod.code is None]
        free = {name: total - sum(pod.asked.get(name, 0) for pod in running) for name, total in NODE.items()}
        for name, pod in pods.items():
            if pod.process is None and all(free[key] >= value for key, value in pod.asked.items()):
                free = {key: value - pod.asked.get(key, 0) for key, value in free.items()}
                pod.start()
                threading.Thread(target=self.follow, args=(name, pod), daemon=True).start()

    def follow(self, name: str, pod: Pod) -> None:
        code = pod.wait()
        with self.lock:
            pod.code = code
            with self.ended.open("a") as file:
                print(json.dumps({"name": name, "code": code, "asked": pod.asked, "deadline": pod.deadline}), file=file)
            self.schedule()

    def found(self, name: str) -> tuple[dict[str, Any], Pod]:
        if name not in self.jobs:
            raise Refused(404, "NotFound", f'jobs.batch "{name}" not found')
        return self.jobs[name]

    def get(self, name: str) -> dict[str, Any]:
        job, pod = self.found(name)
        ended = [] if pod.code is None else [{"type": "Failed" if pod.code else "Complete", "status": "True"}]
        return job | {"status": {"conditions": ended} | ({"active": 1} if pod.process and pod.code is None else {})}

    def delete(self, name: str) -> dict[str, Any]:
        with self.lock:
            _, pod = self.found(name)
            del self.jobs[name]
            if pod.process and pod.code is None:
                pod.stop()
                pod.process.wait()  # as with --cascade=foreground: the job is gone when its pod is
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def answer(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if self.command == "GET" and path in DISCOVERY:
            return DISCOVERY[path]
        match self.command, path.removeprefix("/apis/batch/v1/namespaces/").split("/")[1:]:
            case "POST", ["jobs"]:
                return self.cluster.create(json.loads(body))
            case "GET", ["jobs", name]:
                return self.cluster.get(name)
            case "DELETE", ["jobs", name]:
                return self.cluster.delete(name)
        raise Refused(404, "NotFound", "the server could not find the requested resource")

    def handle_one(self) -> None:
        try:
            status, answer = 200, self.answer()
        except Refused as error:
            status, said = error.status, {"status": "Failure", "reason": error.reason, "message": str(error)}
            answer = {"kind": "Status", "apiVersion": "v1", "code": status} | said
            print(f"{self.command} {self.path}: {status} {error}", file=sys.stderr, flush=True)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = handle_one

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    claim, _, folder = sys.argv[1].partition("=")
    port_file, ended = map(Path, sys.argv[2:4])
    Handler.cluster = Cluster({claim: folder}, ended)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port_file.write_text(str(server.server_port))
    server.serve_forever()


if __name__ == "__main__":
    main()
