"""A LoRA that is loaded acts: every key of its file is used, in our naming, in the old one and in others', or the file is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from apex import lora
from apex.card import LORA_FILE
from apex.errors import UserError
from apex.generator import Generator
from evaluators.systems.build import build

FAMILIES = ["sana", "qwen_image"]
Change = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture(params=FAMILIES)
def run(request, make_loop, tiny_pipeline: Path, qwen_pipeline: Path, tmp_path: Path) -> Path:
    """An exported run by LoRA, rank 2 and alpha 6, whose update is far from zero."""
    pipeline = {"sana": tiny_pipeline, "qwen_image": qwen_pipeline}[request.param]
    loop = make_loop("apex", tuning="lora", lora={"rank": 2, "alpha": 6}, pipeline=str(pipeline), train={"ema": 0.0})
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loop.student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    loop.export(tmp_path / "run")
    return tmp_path / "run"


def change(file: Path, how: Change) -> None:
    """The file again after `how(tensors, metadata)` has changed the two."""
    with safe_open(file, "pt") as opened:
        tensors, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata())  # noqa: SIM118
    how(tensors, metadata)
    save_file(tensors, file, metadata)


def drawn(run: Path) -> Tensor:
    generator = Generator.load(run, nfe=1)
    noise, fresh = generator.noise(0, [(0, 0)])
    return generator.denoise(generator.encode(["a red circle"]), noise, fresh)


def rename(tensors: dict[str, Tensor], to: Callable[[str], str], every: int = 1) -> None:
    for key in list(tensors)[::every]:
        tensors[to(key)] = tensors.pop(key)


def without_prefix(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The file as `save_lora_adapter` wrote it before: no prefix in keys and metadata."""
    rename(tensors, lambda key: key.removeprefix("transformer."))
    told = json.loads(metadata["lora_adapter_metadata"])
    metadata["lora_adapter_metadata"] = json.dumps({key.removeprefix("transformer."): value for key, value in told.items()})


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "none"])
@pytest.mark.parametrize("prefix", [True, False], ids=["transformer.", "no prefix"])
def test_our_files_are_read_in_the_naming_of_pipelines_and_in_the_old_one(run: Path, prefix: bool, metadata: bool) -> None:
    """Rank and alpha of the run hold where the file does not tell them."""
    file, expected = run / "lora" / LORA_FILE, drawn(run)
    with safe_open(file, "pt") as opened:
        assert all(re.fullmatch(r"transformer\..+\.lora_[AB]\.weight", key) for key in opened.keys())  # noqa: SIM118
    if not prefix:
        change(file, without_prefix)
    if not metadata:
        change(file, lambda _, told: told.clear())
    assert torch.equal(drawn(run), expected)
    made = json.loads((run / "made.json").read_text())
    made["run"]["lora"]["alpha"] = None  # the rank, so a third of the update
    (run / "made.json").write_text(json.dumps(made))
    if metadata:
        with pytest.raises(UserError, match=r"lora_alpha: found 6, expected 2 as in made.json; put back the file"):
            drawn(run)
    else:
        assert float((drawn(run) - expected).abs().max()) > 1e-3


def halve(tensors: dict[str, Tensor], _) -> None:
    for key in list(tensors)[::2]:
        del tensors[key]


def widen(tensors: dict[str, Tensor], _) -> None:
    for key, value in tensors.items():  # rank 4 instead of 2
        tensors[key] = torch.cat([value, value], dim=0 if "lora_A" in key else 1)


def stretch(tensors: dict[str, Tensor], _) -> None:
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = torch.cat([tensors[key]] * 2)


def fewer_targets(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A sound LoRA, but of other modules than the run trained."""
    for key in [key for key in tensors if ".to_v." in key]:
        del tensors[key]
    told = json.loads(metadata["lora_adapter_metadata"])
    told["transformer.target_modules"].remove("to_v")
    metadata["lora_adapter_metadata"] = json.dumps(told)


def spoil(tensors: dict[str, Tensor], _) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


MEND = "put back the file that the run wrote, or train the row again"
KEY = r"transformer\.[a-z_0-9.]*\.lora_[AB]\.weight"
TRAPS = {
    "no key fits": (
        lambda tensors, _: rename(tensors, lambda key: key.replace("transformer.", "unet.", 1)),
        r"unet\.\S+: found a key that fits no module of \w+Transformer2DModel \(0 of (\d+) keys fit\), expected keys as \S+",
    ),
    "half the keys fit": (
        lambda tensors, _: rename(tensors, lambda key: key.replace(".lora", ".other.lora"), every=2),
        r"transformer\.\S+\.other\.lora_A\.weight: found a key that fits no module of \w+ \(\d+ of \d+ keys fit\), expected keys as \S+",
    ),
    "half the keys are missing": (halve, KEY + r": found no such key \((\d+) of (\d+) keys are there\), expected shape \[2, \d+.*\]"),
    "fewer targets": (fewer_targets, KEY + r": found no such key \((\d+) of (\d+) keys are there\), expected shape \[2, \d+.*\]"),
    "another rank": (widen, KEY + r": found shape \[4, \d+.*\], expected \[2, \d+.*\] of rank 2"),
    "another shape": (stretch, KEY + r": found shape \[\d+, 2.*\], expected \[\d+, 2.*\] of rank 2"),
    "not finite": (spoil, KEY + r": found values that are not finite, expected numbers"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_file_that_is_not_the_runs_is_refused_by_its_first_key(run: Path, trap: str) -> None:
    how, line = TRAPS[trap]
    file = run / "lora" / LORA_FILE
    change(file, how)
    with pytest.raises(UserError) as caught:
        drawn(run)
    assert re.fullmatch(f"{re.escape(str(file))}: {line}; {MEND}", str(caught.value)), caught.value


def test_a_file_without_rank_in_it_or_in_the_run_is_refused(run: Path) -> None:
    change(run / "lora" / LORA_FILE, lambda _, told: told.clear())
    made = json.loads((run / "made.json").read_text())
    del made["run"]
    (run / "made.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match=f"{LORA_FILE}: rank: found none in its metadata or in made.json, expected one; {MEND}"):
        drawn(run)


# -------------------------------------------------------------------------------------- published LoRA, loaded by diffusers

SYSTEMS = {"sana-sprint-0.6b": "transformer", "qwen-image": "transformer", "flux-schnell": "transformer", "sdxl-dmd2": "unet"}


@pytest.fixture(scope="module", params=SYSTEMS)
def published(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    """(system, tensors of a LoRA of rank 4 for it under diffusers' names)."""
    pipe = build(request.param, small=True, device="cpu", dtype=torch.float32)
    part = SYSTEMS[request.param]
    model = getattr(pipe, part)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return request.param, {f"{part}.{key}": value.clone() for key, value in get_peft_model_state_dict(model).items()}


def opened(system: str, tensors: dict[str, Tensor], folder: Path) -> diffusers.DiffusionPipeline:
    """A fresh small pipeline with the tensors of such a file loaded."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "theirs.safetensors")
    pipe = build(system, small=True, device="cpu", dtype=torch.float32)
    lora.load_into(pipe, folder, "theirs.safetensors")
    return pipe


def update(pipe: diffusers.DiffusionPipeline, part: str) -> dict[str, Tensor]:
    """Module -> what its adapter adds to its weight."""
    tuned = {name: module for name, module in getattr(pipe, part).named_modules() if hasattr(module, "get_delta_weight")}
    return {name: module.get_delta_weight(module.active_adapters[0]) for name, module in tuned.items()}


def kohya(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As kohya's scripts name them: flat names, `lora_down` and `lora_up`, and an alpha of its own beside each pair."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, _, end = key.partition(".")[2].partition(".lora_")
        flat = f"lora_unet_{module.replace('.', '_')}"
        found[f"{flat}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = value
        found[f"{flat}.alpha"] = torch.tensor(2.0)
    return found


def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value for key, value in tensors.items()}


OTHERS = [
    ("qwen-image", kohya, 0.5),
    ("qwen-image", lambda tensors: {key.replace("transformer.", "diffusion_model.", 1): v for key, v in tensors.items()}, 1.0),
    ("sdxl-dmd2", kohya, 0.5),
    ("sdxl-dmd2", old, 1.0),
]


def test_every_naming_that_diffusers_converts_is_taken_and_acts(published, tmp_path: Path) -> None:
    system, tensors = published
    expected = update(opened(system, tensors, tmp_path / "lora"), SYSTEMS[system])
    assert len(expected) == len(tensors) // 2 and all(value.abs().max() > 0 for value in expected.values())
    for of, named, scale in OTHERS:
        if of == system:
            found = update(opened(system, named(tensors), tmp_path / "lora"), SYSTEMS[system])
            assert found.keys() == expected.keys(), named
            for name, value in found.items():
                torch.testing.assert_close(value, scale * expected[name])


THEIRS = {
    "no key fits": (
        lambda tensors, _: rename(tensors, lambda key: key.partition(".")[2]),
        r"\S+\.lora_A\.weight: found a key of no part of \w+Pipeline, expected it to begin with (unet|transformer)\.( or \w+\.)*",
    ),
    "half the modules fit": (
        lambda tensors, _: rename(tensors, lambda key: key.replace("to_v.", "to_other.")),
        r"\S+\.to_other\.lora_A\.weight: found a key that fits no module of \w+Model, expected keys of its modules alone",
    ),
    "another rank": (
        lambda tensors, _: tensors.update({next(iter(tensors)): next(iter(tensors.values()))[:2]}),
        r"(unet|transformer)\.\S+\.to_q\.lora_A\.weight: found shape \[2, \d+\], expected \[4, \d+\] of \w+Pipeline",
    ),
    "zeros": (
        lambda tensors, _: tensors.update({key: 0 * value for key, value in tensors.items()}),
        r"found \d+ tensors that change nothing, expected an update",
    ),
    "not finite": (
        lambda tensors, _: tensors.update({key: value + float("inf") for key, value in tensors.items()}),
        r"(unet|transformer)\.\S+: found values that are not finite, expected numbers",
    ),
}


@pytest.mark.parametrize("trap", THEIRS)
def test_a_published_lora_that_does_not_act_whole_is_refused(published, tmp_path: Path, trap: str, capfd) -> None:
    """diffusers warns of the first two, and draws; what it prints is no second line."""
    (system, tensors), (how, line) = published, THEIRS[trap]
    how(tensors := dict(tensors), {})
    capfd.readouterr()
    with pytest.raises(UserError) as caught:
        opened(system, tensors, tmp_path / "lora")
    place = re.escape(str(tmp_path / "lora" / "theirs.safetensors"))
    assert re.fullmatch(f"{place}: {line}; name a LoRA that was made for this pipeline, or fetch it again", str(caught.value)), caught.value
    assert "size mismatch" not in capfd.readouterr().err


def test_half_a_pair_and_a_pipeline_that_takes_none_are_refused(published, tmp_path: Path) -> None:
    system, tensors = published
    key = next(key for key in tensors if "lora_B" in key)
    with pytest.raises(UserError) as caught:
        opened(system, {name: value for name, value in tensors.items() if name != key}, tmp_path / "lora")
    assert re.search(re.escape(key) + ": found no such key" if system != "flux-schnell" else "cannot be read", str(caught.value))
    with pytest.raises(UserError, match=r"theirs\.safetensors: found a LoRA for a PixArtAlphaPipeline, which takes none in diffusers"):
        opened("pixart", tensors, tmp_path / "lora")
