"""Files of another version of the suite, and caches of another encoder or resolution: refused in one line before work starts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apex import train
from apex.data import captions, readers
from apex.data.latents import build, load_cache, vae_checksum
from apex.errors import UserError, run_command
from apex.export import FORMATS, read_run
from apex.generator import Generator
from apex.loop import Diverged


def said(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ------------------------------------------------------------------------------------------------ exported runs


@pytest.fixture
def exported(make_loop, tmp_path: Path) -> Path:
    loop = make_loop("fm")
    loop.fit(1)
    loop.export(tmp_path / "run")
    return tmp_path / "run"


def test_known_formats_of_a_run_are_read(exported: Path) -> None:
    for number in sorted(FORMATS):
        change(exported / "sampling.json", format=number)
        assert read_run(exported)[0]["format"] == number
    made = json.loads((exported / "made.json").read_text())
    (exported / "made.json").write_text(json.dumps({key: value for key, value in made.items() if key != "format"}))  # of the time before
    assert Generator.load(exported, nfe=1).made["row"] == "row"


@pytest.mark.parametrize("found", [3, 0, "1", None, True])
@pytest.mark.parametrize("name", ["sampling.json", "made.json"])
def test_an_unknown_format_of_a_run_is_one_line(exported: Path, name: str, found: object) -> None:
    file = exported / name
    change(file, format=found)
    expected = "1"
    line = f"{file}: format: found {found!r}, expected {expected}: it is of another version of the suite; train the row again"
    assert said(lambda: Generator.load(exported, nfe=1)) == line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("base", None, "base: found None, expected the folder of the pipeline"),
        ("mode", "some", "mode: found 'some', expected one of few, any, multi"),
        ("tuning", "half", "tuning: found 'half', expected full or lora"),
        ("sigmas", {"2": [0.5, 1.0]}, "sigmas: found {'2': [0.5, 1.0]}, expected NFE: as many falling times in (0, 1]"),
        ("sigmas", {"2": [1.0]}, "sigmas: found {'2': [1.0]}, expected"),
        ("target_time", "embedding", "found weights with target_time 'none', expected 'embedding' of sampling.json"),
    ],
)
def test_a_recipe_that_says_nothing_of_use_is_one_line(exported: Path, key: str, value: object, words: str) -> None:
    change(exported / "sampling.json", **{key: value})
    assert words in said(lambda: Generator.load(exported, nfe=1))


def test_a_run_whose_extra_network_is_gone_is_not_sampled_without_it(make_loop, qwen_pipeline: Path, tmp_path: Path) -> None:
    loop = make_loop("apex", pipeline=str(qwen_pipeline))
    loop.fit(1)
    loop.export(tmp_path / "run")
    assert Generator.load(tmp_path / "run", nfe=1).backbone.target_time == "embedding"
    (tmp_path / "run" / "target_time_embedder.safetensors").unlink()
    assert "found weights with target_time 'none', expected 'embedding'" in said(lambda: Generator.load(tmp_path / "run", nfe=1))


# ---------------------------------------------------------------------------------------- what a run continues from


def test_a_state_of_an_unknown_format_is_one_line(make_loop, tmp_path: Path) -> None:
    make_loop("fm").fit(1)
    path = tmp_path / "resume" / "state.pt"
    torch.save(torch.load(path, weights_only=True) | {"format": 2}, path)
    line = f"{path}: format: found 2, expected 1: it is of another version of the suite; remove the folder to start again"
    assert said(lambda: make_loop("fm").fit(1)) == line
    assert path.exists()


@pytest.mark.parametrize("what", ["weight", "running mean"])
def test_weights_that_are_not_finite_are_neither_saved_nor_exported(make_loop, tmp_path: Path, what: str) -> None:
    """The loss and the gradient are those before the step, so the step itself may spoil what they do not show."""
    loop = make_loop("fm")
    loop.fit(2)
    path = tmp_path / "resume" / "state.pt"
    before = path.read_bytes()
    whole = loop.one_step

    def spoils() -> dict[str, float]:
        logged = whole()
        spoiled = next(p for p in loop.student.parameters() if p.requires_grad) if what == "weight" else loop.ema.shadow[0]
        spoiled.data.view(-1)[0] = torch.inf
        return logged

    loop.one_step = spoils
    with pytest.raises(Diverged, match=r"a trained weight is not finite at step 3; the last good state is kept in .*resume"):
        loop.fit(1)
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------------------- latents, captions


@pytest.fixture
def other_vae(tiny_pipeline: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "other"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.bias"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_a_cache_of_its_own_encoder_and_resolution_is_read(tiny_pipeline: Path, tiny_cache: Path) -> None:
    assert load_cache(tiny_cache, tiny_pipeline, 32).latents.shape[1:] == (4, 8, 8)


def test_a_cache_of_another_encoder_is_refused(tiny_pipeline: Path, tiny_cache: Path, other_vae: Path) -> None:
    found, wanted = vae_checksum(tiny_pipeline), vae_checksum(other_vae)
    assert said(lambda: load_cache(tiny_cache, other_vae)) == (
        f"{tiny_cache / 'made.json'}: vae: found latents of the encoder {found!r}, expected {wanted!r} of {other_vae / 'vae'}; "
        "make the cache again with python -m apex.data.cache"
    )


def test_a_cache_at_another_resolution_is_refused(tiny_pipeline: Path, tiny_shards: Path, tiny_cache: Path, tmp_path: Path) -> None:
    assert said(lambda: load_cache(tiny_cache, tiny_pipeline, 64)) == (
        f"{tiny_cache / 'made.json'}: latent_shape: found latents of [32, 32] pixels, expected 64 a side (data.resolution); "
        "make the cache again with python -m apex.data.cache"
    )
    build(tiny_pipeline, tiny_shards, tmp_path / "small", resolution=16)
    assert "found latents of [16, 16] pixels, expected 32 a side" in said(lambda: load_cache(tmp_path / "small", tiny_pipeline, 32))


@pytest.mark.parametrize("fault", ["encoder", "resolution", "schema"])
def test_training_refuses_it_before_a_step(
    tiny_profile, tiny_cache: Path, other_vae: Path, tmp_path: Path, monkeypatch, capsys, fault: str
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache"))
    changes = {"encoder": {"pipeline": str(other_vae)}, "resolution": {"data": {"scenes": 48, "resolution": 64}}}.get(fault, {})
    if fault == "schema":
        change(cache / "made.json", schema=2)
    out = tmp_path / "run"
    line = ["apex.train", "--config", tiny_profile(**changes), "--row", "fm", "--cache", cache, "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    assert run_command(train.main) == 2
    key = {"encoder": "vae", "resolution": "latent_shape"}.get(fault, fault)
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {cache / 'made.json'}: {key}: found ")
    assert not out.exists() and not list(tmp_path.glob(".resume*"))


def test_embeddings_and_shards_of_another_version(tiny_pipeline: Path, tiny_shards: Path, tmp_path: Path) -> None:
    captions.build(tiny_pipeline, ["a red circle"], tmp_path / "embeddings")
    change(tmp_path / "embeddings" / "made.json", schema=2)
    line = said(lambda: captions.CaptionShards(tmp_path / "embeddings", tiny_pipeline, ["a red circle"], "fp32"))
    assert line.startswith(f"{tmp_path / 'embeddings' / 'made.json'}: schema: found 2, expected 1: it is of another version")
    shards = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    change(shards / "index.json", schema=7)
    assert said(lambda: readers.read_index(shards)).startswith(f"{shards / 'index.json'}: schema: found 7, expected 1")
