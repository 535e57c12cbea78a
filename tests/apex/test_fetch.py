"""Pipelines from the model hub, by its own client over HTTP, from a small hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex.generator import Generator
from tests.apex.hub_server import COMMIT, Hub, serving

SECOND = "vae/diffusion_pytorch_model-00002-of-00003.safetensors"


@pytest.fixture
def hub(tiny_stock, tmp_path: Path) -> Iterator[Hub]:
    """owner/name: a small SANA pipeline as the published ones lie there, in parts and beside a pickle and half-precision variants."""
    repository = tmp_path / "repository"
    shutil.copytree(tiny_stock("sana"), repository)
    (repository / "text_encoder/pytorch_model.bin").write_bytes(b"a pickle")
    (repository / "text_encoder/model.fp16-00001-of-00002.safetensors").write_bytes(b"a variant")
    (repository / "text_encoder/model.safetensors.index.fp16.json").write_bytes(b"{}")
    (repository / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (repository / "lora.safetensors").write_bytes(b"an adapter")
    with serving(repository) as made:
        yield made


@pytest.fixture
def call(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """call(*arguments): the command, finished, with this hub as its hub."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "apex.fetch", *map(str, arguments)]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def test_what_is_fetched_is_pinned_whole_and_holds_no_pickle(hub: Hub, call, tmp_path: Path) -> None:
    out = tmp_path / "results/pipeline"
    done = call("--hub", "owner/name@v1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "fetched.json").read_text()) == {"hub": "owner/name", "revision": "v1", "commit": COMMIT}
    assert {revision for revision, *_ in hub.given} == {COMMIT}, "a branch may move between two files"
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {"fetched.json"}
    left = {file for file in hub.files() if "fp16" in file or file.endswith(".bin") or file == "lora.safetensors"}
    assert len(left) == 5 and found == set(hub.files()) - left == {file for _, file, _ in hub.given}
    assert all((out / file).read_bytes() == (hub.folder / file).read_bytes() for file in found)
    assert Generator.load(out, nfe=1, resolution=32).latent_shape == (4, 8, 8)
    again = call("--hub", "owner/name@v1", "--out", out)
    assert again.returncode == 2 and "is there already; remove it to fetch again" in again.stderr


def test_an_interrupted_call_goes_on_where_it_was(hub: Hub, call, tmp_path: Path) -> None:
    out = tmp_path / "results/pipeline"
    hub.broken = {SECOND}
    done = call("--hub", "owner/name", "--out", out)
    assert done.returncode == 2 and "error: hub: owner/name: could not be fetched (" in done.stderr and not out.exists()
    whole = {file for _, file, _ in hub.given} - {SECOND}
    hub.broken, hub.given = set(), []
    assert call("--hub", "owner/name", "--out", out).returncode == 0
    assert not whole & {file for _, file, _ in hub.given}, "what came whole is not asked for again"
    assert (out / SECOND).read_bytes() == (hub.folder / SECOND).read_bytes()
    assert not [path for path in out.parent.iterdir() if path != out]


def test_all_parts_or_one_file(hub: Hub, call, tmp_path: Path) -> None:
    (hub.folder / "lora.safetensors").rename(hub.folder / "few-steps.safetensors")
    assert call("--hub", "owner/name", "--file", "few-steps.safetensors", "--out", tmp_path / "lora").returncode == 0
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"few-steps.safetensors", "fetched.json"}
    (hub.folder / "image_encoder").mkdir()
    (hub.folder / "image_encoder/config.json").write_text("{}")
    assert call("--whole", "--hub", "owner/name", "--out", tmp_path / "whole").returncode == 0
    assert (tmp_path / "whole/image_encoder/config.json").is_file() and not list((tmp_path / "whole").rglob("*.bin"))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("owner/other", lambda hub: None, "could not be fetched (404"),
        ("owner/name@v2", lambda hub: None, "could not be fetched (404"),
        ("owner/name", lambda hub: setattr(hub, "status", 403), "log in where the model asks for it (hf auth login)"),
        ("owner/name", lambda hub: shutil.rmtree(hub.folder / "vae"), "found no vae in it, expected a pipeline in diffusers' layout"),
    ],
    ids=["no such model", "no such revision", "gated", "no pipeline"],
)
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(hub: Hub, call, tmp_path: Path, name: str, change, expected: str) -> None:
    change(hub)
    done = call("--hub", name, "--out", tmp_path / "results/pipeline")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and errors[0].startswith(f"error: hub: {name}: ") and expected in errors[0]
    assert not (tmp_path / "results/pipeline").exists() and "Traceback" not in done.stderr


def test_without_a_network_it_is_one_line(call, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    hub.server_close()
    done = call("--hub", "owner/name", "--out", tmp_path / "pipeline")
    assert (
        done.returncode == 2 and done.stderr.startswith("error: hub: owner/name: could not be fetched (") and done.stderr.count("\n") == 1
    )
