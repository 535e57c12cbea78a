"""Networks that are not what their file says: each damage is refused in one line with file and tensor, and what is whole loads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apex.data.latents import load_vae
from apex.errors import UserError
from apex.pipeline import load_backbone
from apex.stock import load_networks, scheduler_class
from apex.text import TextPath
from apex.weights import finite, pretrained, take

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def part_of(folder: Path, name: str) -> object:
    """One network of a pipeline, by the call that the suite loads it with."""
    return {"transformer": lambda: load_backbone(folder / name), "vae": lambda: load_vae(folder), "text_encoder": lambda: TextPath(folder)}[
        name
    ]()


# part -> its file of weights, one of its tensors, and the key of its configuration that counts layers
PARTS = {
    "transformer": (DIFFUSERS, "transformer_blocks.1.attn1.to_q.weight", "num_layers"),
    "vae": (DIFFUSERS, "decoder.conv_in.weight", "layers_per_block"),
    "text_encoder": (TRANSFORMERS, "encoder.final_layer_norm.weight", "num_layers"),
}


def lacking(weights: dict[str, Tensor], name: str) -> None:
    del weights[name]


def left_over(weights: dict[str, Tensor], name: str) -> None:
    weights["one.more.weight"] = torch.zeros(3)


def not_a_number(weights: dict[str, Tensor], name: str) -> None:
    weights[name].view(-1)[-1] = torch.nan


def infinite(weights: dict[str, Tensor], name: str) -> None:
    weights[name].view(-1)[0] = -torch.inf


def other_shape(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = torch.zeros(3, 5)


# damage -> what is said of the tensor, after the file's and the tensor's names
DAMAGES: dict[Callable, str] = {
    lacking: r"found no such tensor, expected one of shape \[[\d, ]+\], as a \w+ has it",
    left_over: r"found a tensor without a place in a \w+ of this configuration, expected none",
    not_a_number: "found values that are not finite, expected numbers",
    infinite: "found values that are not finite, expected numbers",
    other_shape: r"found shape \[3, 5\], expected \[[\d, ]+\]",
}


def refused(call: Callable[[], object], *words: str) -> None:
    """The call ends with one line of these words, in this order."""
    with pytest.raises(UserError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(".*".join(words), said), said


@pytest.fixture
def copied(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def damage_file(file: Path, damage: Callable, name: str) -> None:
    weights = load_file(file)
    damage(weights, name)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_network_is_refused_with_file_and_tensor(copied: Path, part: str, damage: Callable) -> None:
    file, name, _ = PARTS[part]
    part_of(copied, part)  # whole, it loads
    damage_file(copied / part / file, damage, name)
    tensor = "one.more.weight" if damage is left_over else name
    refused(lambda: part_of(copied, part), re.escape(f"{copied / part / file}: {tensor}: ") + DAMAGES[damage], "; ")


@pytest.mark.parametrize("part", PARTS)
def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(tiny_stock, copied: Path, part: str) -> None:
    if part == "text_encoder":  # the tiny one has a single layer
        copied = Path(shutil.copytree(tiny_stock("sana"), copied.with_name("sana")))
    file, _, key = PARTS[part]
    key = {"text_encoder": "num_hidden_layers"}.get(part, key)
    config = copied / part / "config.json"
    told = json.loads(config.read_text())
    fewer = {key: told[key] - 1} | ({"layer_types": told["layer_types"][:-1]} if "layer_types" in told else {})
    config.write_text(json.dumps(told | fewer))
    of = re.escape(str(copied / part / file.removesuffix(".safetensors")))
    refused(lambda: part_of(copied, part), of + r"[-\w]*\.safetensors: [\w.]+: found a tensor without a place", r"\[and \d+ more\]; ")


def test_the_libraries_print_nothing_of_what_they_would_have_let_pass(copied: Path, caplog, capfd) -> None:
    damage_file(copied / "text_encoder" / TRANSFORMERS, lacking, PARTS["text_encoder"][1])
    refused(lambda: TextPath(copied), "final_layer_norm")
    assert "newly initialized" not in caplog.text + "".join(capfd.readouterr())


# ------------------------------------------------------------------------------------------ whole stock pipelines


@pytest.mark.parametrize("family", ["sana", "qwen_image"])
def test_stock_pipelines_in_shards_load_whole(tiny_stock, family: str) -> None:
    """Gemma-2 and Qwen2.5-VL with their tied and renamed weights, as diffusers itself loads them."""
    folder = tiny_stock(family)
    found = load_networks(folder, torch.float32)
    assert set(found) == {"transformer", "vae", "text_encoder"}
    own = diffusers.DiffusionPipeline.from_pretrained(folder)
    for name, network in found.items():
        theirs = getattr(own, name).state_dict()
        assert theirs.keys() == network.state_dict().keys()
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_missing_shard_and_a_shard_without_what_the_index_says(tiny_stock, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(tiny_stock("sana"), tmp_path / "pipeline"))
    index = next((folder / part).glob("*.index.json"))
    name, shard = sorted(json.loads(index.read_text())["weight_map"].items())[-1]
    file = folder / part / shard
    whole = file.read_bytes()
    damage_file(file, lacking, name)
    refused(lambda: load_networks(folder, torch.float32), re.escape(f"{file}: {name}: found no such tensor, but {index.name} places it"))
    file.write_bytes(whole)
    damage_file(file, not_a_number, name)
    refused(lambda: load_networks(folder, torch.float32), re.escape(f"{file}: {name}: found values that are not finite"))
    file.unlink()
    refused(lambda: load_networks(folder, torch.float32), re.escape(f"{file}: not found, but {index.name} places"))


def test_tied_weights_and_buffers_that_a_class_makes_itself_are_no_fault(tmp_path: Path) -> None:
    """FLUX's pair of encoders: a T5 whose table of tokens is written once, a CLIP whose old files hold its positions' numbers."""
    t5 = transformers.T5EncoderModel(transformers.T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    t5.save_pretrained(tmp_path / "t5")
    assert len(load_file(tmp_path / "t5" / TRANSFORMERS)) < len(t5.state_dict())
    loaded = pretrained(transformers.T5EncoderModel, tmp_path / "t5", "again")
    assert torch.equal(loaded.encoder.embed_tokens.weight, t5.shared.weight)

    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    clip.save_pretrained(tmp_path / "clip")
    name = next(name for name, _ in clip.named_buffers() if name.endswith("position_ids"))
    file = tmp_path / "clip" / TRANSFORMERS
    weights = load_file(file)
    assert name not in weights
    save_file(weights | {name: torch.arange(77)[None]}, file, metadata={"format": "pt"})
    pretrained(transformers.CLIPTextModel, tmp_path / "clip", "again")


# --------------------------------------------------------------------------------------------- networks of our own


def test_a_state_is_taken_whole_or_refused() -> None:
    network, file = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), Path("w.safetensors")
    good = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    take(network, good, file, "make it again")
    assert all(bool((value == 1).all()) for value in network.state_dict().values())
    for damage, words in DAMAGES.items():
        given = {name: value.clone() for name, value in good.items()}
        damage(given, "1.running_var")
        tensor = "one.more.weight" if damage is left_over else "1.running_var"
        refused(lambda given=given: take(network, given, file, "make it again"), f"^{file}: {tensor}: {words}", "; make it again$")
    assert all(bool((value == 1).all()) for value in network.state_dict().values())  # what was refused changed nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_finite_sees_one_bad_value_anywhere_in_every_dtype(dtype: torch.dtype) -> None:
    for bad in (torch.nan, *(() if dtype == torch.float8_e4m3fn else (torch.inf, -torch.inf))):  # e4m3fn has no infinity
        for place in (0, 500, 999):
            values = torch.linspace(-9, 9, 1000)
            assert finite(values.to(dtype))
            values[place] = bad
            assert not finite(values.to(dtype))
    assert finite(torch.arange(3)) and finite(torch.zeros(0))


# --------------------------------------------------------------------------------------------------- schedulers


def test_a_setting_that_the_scheduler_does_not_know_is_refused_with_the_nearest() -> None:
    kind = "FlowMatchEulerDiscreteScheduler"
    assert scheduler_class(kind, {"shift": 3.0}, "x").__name__ == kind
    refused(
        lambda: scheduler_class(kind, {"shift_terminl": 0.1}, "checkpoints: mine: scheduler"),
        f"^checkpoints: mine: scheduler: {kind}: unknown setting 'shift_terminl'; did you mean 'shift_terminal'",
        "known: ",
        "use_dynamic_shifting",
    )


def test_leftovers_of_a_compatible_scheduler_are_let_pass_in_a_file_and_not_in_a_profile() -> None:
    """Stable Diffusion 1.5's PNDM scheduler is published with DDIM's `clip_sample`."""
    published = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "clip_sample": False}
    scheduler_class("PNDMScheduler", published, "scheduler_config.json", own=False)
    refused(lambda: scheduler_class("PNDMScheduler", published, "profile"), "profile: PNDMScheduler: unknown setting 'clip_sample'")
    refused(lambda: scheduler_class("PNDMScheduler", {"shfit": 1}, "f", own=False), "unknown setting 'shfit'")


def test_a_pipeline_whose_scheduler_file_has_an_unknown_setting_is_not_opened(tiny_stock, tmp_path: Path) -> None:
    from apex.stock import StockGenerator

    folder = Path(shutil.copytree(tiny_stock("qwen_image"), tmp_path / "pipeline"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_shft": 0.9}))
    checkpoint = SimpleNamespace(folders=[folder], scheduler={}, row="mine")
    config = SimpleNamespace(checkpoint_rows={"mine": checkpoint})
    refused(
        lambda: StockGenerator.load(config, "mine", nfe=1),
        f"^{re.escape(str(file))}: FlowMatchEulerDiscreteScheduler: unknown setting 'max_shft'; did you mean 'max_shift'",
    )
