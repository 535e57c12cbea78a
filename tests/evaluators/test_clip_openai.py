"""OpenAI's CLIP from its archive: the weights land where they belong, its activation is on, and wrong files are one clear line.

The network is a small one of open_clip's same classes, registered under a name of its own; its weights are random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from apex.errors import UserError, run_command
from evaluators import clip_score
from evaluators.clip_model import OPENAI, Clip
from evaluators.result import read_record

VISION = {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 56}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = ["a red cube", "two dogs", "two dogs " * 60]


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory) -> None:
    for name, quick in (("small-quickgelu", True), ("small", False)):
        path = tmp_path_factory.mktemp("configs") / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 16, "quick_gelu": quick, "vision_cfg": VISION, "text_cfg": TEXT}))
        open_clip.add_model_config(path)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The network that the files below are made of. Its MLPs are scaled up: the activations differ where their inputs are not near zero."""
    torch.manual_seed(0)
    model = open_clip.create_model("small-quickgelu", load_weights=False).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(((3 if "c_fc" in name else 1) * weight).half())  # half precision, as in OpenAI's archive
    return model


class Archive(nn.Module):
    """As OpenAI's: the weights under their names at the root, and three numbers among them."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.place(name.split("."), value.half() if value.ndim else value)
        for name, number in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def place(self, path: list[str], value: torch.Tensor) -> None:
        module: nn.Module = self
        for part in path[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Identity())
            module = module.get_submodule(part)
        module.register_parameter(path[-1], nn.Parameter(value.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def archive(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openai") / "small.pt"
    torch.jit.script(Archive(dict(model.state_dict()))).save(str(path))
    return path


def load(path: Path, architecture: str = "small-quickgelu", batch: int = 64) -> Clip:
    return Clip.openai(path, architecture=architecture, batch=batch)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((224, 224), (300, 260), (64, 99))]


def test_the_archive_gives_the_networks_own_vectors(model, archive, pictures):
    clip = load(archive)
    assert clip.identity.startswith("small-quickgelu ") and len(clip.identity.split()[1]) == 12
    _, _, transform = open_clip.create_model_and_transforms("small", load_weights=False)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True)
        said = model.encode_text(open_clip.tokenize(TEXTS), normalize=True)
    assert torch.allclose(clip.encode_images(pictures), seen, atol=1e-6)
    assert torch.allclose(clip.encode_texts(TEXTS), said, atol=1e-6)


def test_the_transform_is_openais(archive):
    """224 by bicubic, centre, OpenAI's mean and deviation, written out with Pillow and numpy."""
    transform = load(archive)._transform
    pixels = np.random.default_rng(1).integers(0, 256, (448, 672, 3), np.uint8)
    small = Image.fromarray(pixels).resize((336, 224), Image.Resampling.BICUBIC).crop((56, 0, 280, 224))
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = (np.asarray(small) / 255 - mean) / deviation
    assert np.allclose(transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_quick_gelu_is_on(archive, model, pictures):
    """x sigmoid(1.702 x); under the plain name the same weights give other vectors, and no error: hence the name."""
    x = torch.linspace(-3, 3, 7)
    assert torch.allclose(load(archive)._model.visual.transformer.resblocks[0].mlp.gelu(x), x * torch.sigmoid(1.702 * x))
    quick, plain = load(archive).encode_images(pictures), load(archive, "small").encode_images(pictures)
    assert (quick - plain).abs().max() > 1e-3
    assert open_clip.get_model_config(OPENAI)["quick_gelu"] is True


def test_the_name_is_that_of_the_published_network():
    config = open_clip.get_model_config(OPENAI)
    assert config["embed_dim"] == 768 and config["vision_cfg"]["patch_size"] == 14 and config["vision_cfg"]["image_size"] == 224
    assert (config["vision_cfg"]["layers"], config["vision_cfg"]["width"], config["text_cfg"]["context_length"]) == (24, 1024, 77)


@pytest.mark.parametrize("naming", ["openai's", "open_clip's with text.", "folder"])
def test_other_files_of_the_same_weights_give_the_same(naming, model, archive, pictures, tmp_path):
    text = ("positional_embedding", "text_projection", "token_embedding.", "ln_final.", "transformer.")
    weights = {
        ("text." if naming == "open_clip's with text." and name.startswith(text) else "") + name: value.half().contiguous()
        for name, value in model.state_dict().items()
    }
    file = tmp_path / "open_clip_model.safetensors"
    save_file(weights, file)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    clip = load(tmp_path if naming == "folder" else file)
    assert torch.equal(clip.encode_images(pictures), load(archive).encode_images(pictures))
    assert torch.equal(clip.encode_texts(TEXTS), load(archive).encode_texts(TEXTS))


def test_the_batch_does_not_matter(archive, pictures):
    whole, single = load(archive), load(archive, batch=1)
    assert torch.allclose(whole.encode_images(pictures), single.encode_images(pictures), atol=1e-5)
    assert torch.allclose(whole.encode_texts(TEXTS), single.encode_texts(TEXTS), atol=1e-5)


def test_what_is_beyond_77_tokens_is_known_and_not_seen(archive):
    clip = load(archive)
    fits, over = "dog " * 75, "dog " * 76
    assert clip.too_long([fits, over, "a"]) == [1]
    seen = clip.encode_texts([over + "and a cat", over, fits + "cat"])
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert not torch.allclose(clip.encode_texts([fits]), clip.encode_texts(["dog " * 74]), atol=1e-4)


def spoil_pickle(path: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), path / "w.pt")
    return path / "w.pt"


def spoil_text(path: Path, model: nn.Module) -> Path:
    (path / "w.safetensors").write_text("not weights")
    return path / "w.safetensors"


def spoil_missing(path: Path, model: nn.Module) -> Path:
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "visual.proj"}
    save_file(weights, path / "w.safetensors")
    return path / "w.safetensors"


def spoil_extra(path: Path, model: nn.Module) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()} | {"visual.more": torch.ones(1)}, path / "w.safetensors")
    return path / "w.safetensors"


def spoil_shape(path: Path, model: nn.Module) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()} | {"visual.proj": torch.ones(1)}, path / "w.safetensors")
    return path / "w.safetensors"


def spoil_folder(path: Path, model: nn.Module) -> Path:
    return path


def spoil_activation(path: Path, model: nn.Module) -> Path:
    spoil_text(path, model)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16}}))
    return path


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda path, model: path / "nowhere.pt", "nowhere.pt: not found; expected OpenAI's ViT-L-14.pt"),
        (spoil_pickle, "w.pt: not a TorchScript archive"),
        (spoil_text, "w.safetensors: not safetensors"),
        (spoil_missing, "visual.proj: found no such tensor, expected one of shape"),
        (spoil_extra, "visual.more: found a tensor without a place"),
        (spoil_shape, "visual.proj: found shape "),
        (spoil_folder, "0 *.safetensors"),
        (spoil_activation, "quick_gelu is False"),
    ],
)
def test_wrong_files_are_one_clear_line(spoil, named, model, tmp_path):
    with pytest.raises(UserError) as error:
        load(spoil(tmp_path, model))
    assert named in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- the score


@pytest.fixture
def command(archive, monkeypatch) -> Callable[..., int]:
    """The score's command with the small network in the published one's place."""
    monkeypatch.setattr(Clip.openai.__func__, "__defaults__", ("cpu", 64, "small-quickgelu"))

    def run(*arguments: object) -> int:
        given = ["--protocol", "openai", "--weights", archive, "--device", "cpu", "--row", "mine", "--nfe", "1", *arguments]
        return run_command(lambda: clip_score.main([str(a) for a in given]))

    return run


PROMPTS = [{"prompt": f"a photo of {n} things", "tag": "many" if n > 2 else "few"} for n in range(5)] + [{"prompt": "word " * 100}]


def test_the_published_score_is_100_cosines_without_any_render(command, model, make_folder, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 40, 30, 3), np.uint8)
    folder = make_folder(PROMPTS, pixels, per_prompt=2, made=False)
    for batch in (1, 5, 64):
        assert command("--images", folder, "--out", tmp_path / f"{batch}.json", "--batch", batch) == 0
    record = read_record(tmp_path / "64.json")
    _, _, transform = open_clip.create_model_and_transforms("small-quickgelu", load_weights=False)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels])).double()
        said = model.encode_text(open_clip.tokenize([row["prompt"] for row in PROMPTS])).double()
    seen, said = (v / v.norm(dim=1, keepdim=True) for v in (seen, said))
    every = 100 * (seen @ said.T).numpy()
    own = every[np.arange(12), np.repeat(np.arange(6), 2)]
    assert record.value("clip_score") == pytest.approx(own.mean(), abs=1e-3)
    partner = clip_score.derangement([row["prompt"] for row in PROMPTS])
    shuffled = every[np.arange(12), partner[np.repeat(np.arange(6), 2)]].mean()
    assert record.value("clip_score/shuffled") == pytest.approx(shuffled, abs=1e-3)
    assert {m.metric for m in record.metrics} == {"clip_score", "clip_score/shuffled"}
    details = record.details
    assert details["protocol"] == "openai" and details["clip"].startswith("small-quickgelu") and len(details["clip_sha256"]) == 64
    assert (details["prompts_cut"], details["prompts_cut_after_77_tokens"]) == (1, [5])
    assert details["per_prompt"] == pytest.approx(own.reshape(6, 2).mean(1), abs=1e-3)
    for batch in (1, 5):
        other = read_record(tmp_path / f"{batch}.json")
        assert [m.value for m in other.metrics] == pytest.approx([m.value for m in record.metrics], abs=1e-3)


def test_where_most_prompts_say_the_same_there_is_no_floor_and_it_is_said(command, make_folder, tmp_path):
    folder = make_folder([{"prompt": "the same"}] * 3, np.zeros((3, 20, 20, 3), np.uint8), per_prompt=1, made=False)
    assert command("--images", folder, "--out", tmp_path / "o.json") == 0
    record = read_record(tmp_path / "o.json")
    assert [m.metric for m in record.metrics] == ["clip_score"] and "say the same" in record.details["no_shuffled"]


def test_missing_weights_are_named_before_any_work(make_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "assets"))
    given = ["--protocol", "openai", "--images", tmp_path / "nowhere", "--out", tmp_path / "o.json", "--device", "cpu"]
    assert run_command(lambda: clip_score.main([str(a) for a in given])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ViT-L-14.pt: not found" in error and "--weights PATH" in error
