"""Making the pipeline from nothing: the codec's exact normalisation, the text encoder's targets, the teacher's resume."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from apex.command import FAMILIES
from apex.data import world
from apex.data.latents import encode_images
from apex.data.shards import load_images
from apex.errors import run_command
from apex.pretrain import autoencoder, denoiser, t5, teacher


@pytest.fixture(scope="module")
def pictures(tiny_shards) -> Tensor:
    """uint8 (N, 3, 32, 32)."""
    return load_images(tiny_shards)


@pytest.fixture
def codec() -> AutoencoderKL:
    """An untrained codec whose latents are off centre and of uneven scale."""
    torch.manual_seed(0)
    small = AutoencoderKL(**autoencoder.CONFIG, sample_size=32).eval()
    channels = small.config.latent_channels
    with torch.no_grad():
        small.quant_conv.weight[:channels] *= torch.linspace(0.2, 4, channels)[:, None, None, None]
        small.quant_conv.bias[:channels] += torch.linspace(-3, 3, channels)
    return small


# ----------------------------------------------------------------------------------------------------------- codec


def test_folding_gives_unit_latents_and_changes_no_image(codec, pictures):
    images = pictures.float() / 127.5 - 1
    with torch.no_grad():
        latents = codec.encode(images).latent_dist.mode()
        assert float(latents.mean((0, 2, 3)).abs().max()) > 1
        before = codec.decode(latents).sample
        autoencoder.fold_normalisation(codec, images)
        unit = codec.encode(images).latent_dist.mode()
        after = codec.decode(unit).sample
    torch.testing.assert_close(unit.mean((0, 2, 3)), torch.zeros(unit.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(unit.std((0, 2, 3)), torch.ones(unit.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_folding_keeps_the_posterior_of_each_latent_in_step(codec, pictures):
    """The log-variance is scaled with the mean: (z - m) / s has variance sigma^2 / s^2."""
    images = pictures[:16].float() / 127.5 - 1
    with torch.no_grad():
        old = codec.encode(images).latent_dist
        autoencoder.fold_normalisation(codec, images)
        new = codec.encode(images).latent_dist
        scale = old.mean.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(new.std, old.std / scale, rtol=1e-3, atol=1e-6)


def test_folding_twice_changes_nothing_more(codec, pictures):
    images = pictures.float() / 127.5 - 1
    autoencoder.fold_normalisation(codec, images)
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    autoencoder.fold_normalisation(codec, images)
    for k, v in codec.state_dict().items():
        torch.testing.assert_close(v, before[k], rtol=1e-3, atol=1e-4)


def test_a_folded_codec_is_a_stock_autoencoder_of_scale_one(codec, pictures, tmp_path):
    autoencoder.fold_normalisation(codec, pictures.float() / 127.5 - 1)
    codec.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path).eval()
    assert loaded.config.scaling_factor == 1.0 and not loaded.config.shift_factor
    latents = encode_images(loaded, pictures)
    assert abs(float(latents.std()) - 1) < 0.01 and abs(float(latents.mean())) < 0.01


def test_the_codecs_loss_counts_what_it_says(codec, pictures):
    images = pictures[:4].float() / 127.5 - 1
    torch.manual_seed(1)
    loss, mse = autoencoder.codec_loss(codec, images, kl_weight=0.0)
    torch.manual_seed(1)
    more, same = autoencoder.codec_loss(codec, images, kl_weight=1.0)
    posterior = codec.encode(images).latent_dist
    kl = posterior.kl().mean() / posterior.mean[0].numel()  # diffusers sums over elements
    torch.testing.assert_close(mse, same)
    torch.testing.assert_close(more - loss, kl, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    decoded = codec.decode(posterior.sample()).sample
    torch.testing.assert_close(loss, (decoded - images).abs().mean() + (decoded - images).square().mean(), rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    noisy, _ = autoencoder.codec_loss(codec, images, kl_weight=0.0, latent_noise=2.0)
    assert float(noisy.detach()) != float(loss.detach())


def test_a_codec_learns_and_its_decoder_alone_can_learn_on(pictures, capsys):
    common = {"batch": 16, "lr": 3e-3, "kl_weight": 1e-5}
    first, log = autoencoder.train(pictures, steps=45, seed=0, log_every=15, **common)
    assert [step for step, _ in log] == [15, 30, 45]
    assert log[-1][1] > log[0][1] + 1  # decibels
    assert "min left" in capsys.readouterr().out
    second, _ = autoencoder.train(pictures, steps=4, seed=1, init=first, log_every=4, **common)
    before, after = first.state_dict(), second.state_dict()
    frozen = [k for k in before if k.startswith(("encoder.", "quant_conv."))]
    assert frozen and all(torch.equal(before[k], after[k]) for k in frozen)
    assert not torch.equal(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"])


# ---------------------------------------------------------------------------------------------------- text encoder


def test_the_tokenizer_knows_every_word_of_the_world_and_ends_each_caption():
    tokenizer = t5.build_tokenizer()
    unknown, end = tokenizer.convert_tokens_to_ids([t5.UNK, t5.EOS])
    captions = [r["prompt"] for task in world.TASKS for r in list(world.all_prompts(task))[::7]]
    tokens = tokenizer(captions)["input_ids"]
    assert not any(unknown in ids for ids in tokens)
    assert all(ids[-1] == end and ids.count(end) == 1 for ids in tokens)
    assert max(len(ids) for ids in tokens) <= tokenizer.model_max_length
    assert tokenizer("a zebra")["input_ids"][1] == unknown
    assert tokenizer("")["input_ids"] == [end]  # the empty caption has one token


def test_the_targets_of_a_caption_are_in_reading_order():
    """Classes of (shape, other shape, colour, number, place, background) at every noun; what is not said is 0."""
    shapes, colors, backgrounds = list(world.SHAPES), list(world.COLORS), list(world.BACKGROUNDS)
    seen = set()
    for task in world.TASKS:
        for r in list(world.all_prompts(task))[::31]:
            words, targets = r["prompt"].split(), t5.noun_targets(r)
            nouns = [next(s for s in shapes if w.startswith(s)) for w in words if any(w.startswith(s) for s in shapes)]
            shape, other, color, number, place, background = zip(*targets, strict=True)
            assert [shapes[k] for k in shape] == nouns
            assert list(other) == ([1 + shapes.index(n) for n in reversed(nouns)] if len(nouns) == 2 else [0])
            assert [colors[k - 1] for k in color if k] == [w for w in words if w in colors]
            assert list(number) == [entry["count"] - 1 for entry in r["include"]]
            relation = next((entry["position"][0] for entry in r["include"] if "position" in entry), None)
            expected = [1 + world.RELATIONS.index(k) for k in (relation, world.inverse(relation))] if relation else [0] * len(nouns)
            assert list(place) == expected
            assert set(background) == {1 + backgrounds.index(r["background"]) if r["background"] else 0}
            for target in targets:
                assert all(0 <= value < size for value, size in zip(target, t5.CLASSES, strict=True))
            seen.add((task, bool(relation), bool(r["background"])))
    assert {task for task, *_ in seen} == set(world.TASKS) and any(background for *_, background in seen)


def test_the_warm_up_learns_and_gives_its_accuracy(capsys):
    torch.manual_seed(0)
    tokenizer = t5.build_tokenizer()
    encoder = t5.build_encoder(len(tokenizer), width=32, layers=1)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    accuracy = t5.warm_up(encoder, tokenizer, steps=101, batch=32, lr=5e-3, seed=0)
    losses = [float(v) for v in re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)]
    assert losses[-1] < 0.75 * losses[0]
    assert 0 < accuracy <= 1
    assert any(not torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# --------------------------------------------------------------------------------------------------------- teacher

SMALL = ("--steps", "6", "--batch", "4", "--width", "32", "--layers", "1", "--save-minutes", "0")


@pytest.fixture
def pretrain(tiny_pipeline, tiny_cache, tmp_path, monkeypatch):
    """pretrain("out", *options) runs `python -m apex.pretrain.teacher`; returns its exit code."""

    def run(out: str, *options: str) -> int:
        arguments = ["--pipeline", str(tiny_pipeline), "--cache", str(tiny_cache), "--out", str(tmp_path / out), *SMALL, *options]
        monkeypatch.setattr(sys, "argv", ["apex.pretrain.teacher", *arguments])
        return run_command(teacher.main)

    return run


def interrupt_at(monkeypatch, step: int) -> None:
    """The process dies in the middle of this step, after its backward pass."""
    seen, clip = [], nn.utils.clip_grad_norm_

    def dying(*arguments, **options):
        seen.append(1)
        if len(seen) == step + 1:
            raise KeyboardInterrupt
        return clip(*arguments, **options)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", dying)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_resumed_teacher_equals_an_uninterrupted_one_bit_for_bit(pretrain, tmp_path, monkeypatch, capsys):
    assert pretrain("whole") == 0
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        assert pretrain("parts") == 130, "as Ctrl-C"
    assert not (tmp_path / "parts").exists()
    assert pretrain("parts") == 0
    assert "continuing from step 3" in capsys.readouterr().out
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert pretrain("other", "--seed", "1") == 0
    assert any(not torch.equal(whole[k], v) for k, v in weights(tmp_path / "other").items())


def test_the_teacher_is_a_whole_pipeline_with_its_record(pretrain, tmp_path, tiny_pipeline):
    from apex.generator import Generator

    assert pretrain("out") == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"transformer", "text_encoder", "tokenizer", "vae", "scheduler", "made.json"}
    made = json.loads((out / "made.json").read_text())
    assert made["step"] == 6 and made["arguments"]["batch"] == "4" and made["parameters"] > 1000
    assert made["log"][-1]["step"] == 6 and made["hardware"] and made["versions"]["torch"]
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))
    for part in ("vae", "tokenizer"):
        for file in (tiny_pipeline / part).iterdir():
            assert (out / part / file.name).read_bytes() == file.read_bytes()
    generator = Generator.load(out, nfe=2)
    noise, _ = generator.noise(0, [(0, 0)])
    assert torch.isfinite(generator.denoise(generator.encode(["a red circle"]), noise)).all()


def test_stopping_early_exports_the_mean_so_far(pretrain, tmp_path, monkeypatch, capsys):
    assert pretrain("out", "--export-only") == 2
    assert "no saved state to export" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        assert pretrain("out") == 130, "as Ctrl-C"
    assert pretrain("out", "--export-only") == 0
    made = json.loads((tmp_path / "out" / "made.json").read_text())
    assert made["step"] == 2
    (state,) = tmp_path.glob(".out-resume-*.pt")
    saved = torch.load(state, weights_only=True)["ema"]
    found = weights(tmp_path / "out")
    assert found and all(any(k.endswith(name) and torch.equal(v, w) for k, w in saved.items()) for name, v in found.items())


def test_a_teacher_whose_loss_is_not_finite_stops_with_its_state(pretrain, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        assert pretrain("out") == 130, "as Ctrl-C"
    capsys.readouterr()
    (state,) = tmp_path.glob(".out-resume-*.pt")
    whole = state.read_bytes()
    monkeypatch.setattr(denoiser, "interpolate", lambda x, z, t: x * float("nan"))
    assert pretrain("out") == 2
    error = capsys.readouterr().err
    assert "loss is nan at step 3" in error and str(state) in error and error.count("\n") == 1
    assert state.read_bytes() == whole


def test_a_damaged_teacher_state_is_one_clear_line(pretrain, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        assert pretrain("out") == 130, "as Ctrl-C"
    capsys.readouterr()
    (state,) = tmp_path.glob(".out-resume-*.pt")
    state.write_bytes(state.read_bytes()[:1000])
    assert pretrain("out") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_teacher_state_of_another_cache_is_not_continued(pretrain, tiny_pipeline, tiny_shards, tmp_path, monkeypatch, capsys):
    from apex.data.latents import build

    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        assert pretrain("out") == 130, "as Ctrl-C"
    build(tiny_pipeline, tiny_shards, tmp_path / "other", resolution=16)
    pretrain("out", "--cache", str(tmp_path / "other"))
    assert "continuing from step" not in capsys.readouterr().out


def test_the_command_names_every_family():
    assert sorted(denoiser.BUILDERS) == list(FAMILIES)


def test_the_teachers_loss_is_flow_matching_on_image_positions():
    """Sana has image positions only where interpolation_scale is set."""
    transformer = denoiser.build_sana(4, 8, 16, width=64, layers=1).transformer
    assert transformer.config.interpolation_scale is not None and transformer.patch_embed.pos_embed is not None
    assert transformer.config.attention_head_dim == transformer.config.cross_attention_head_dim == 32


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_codec_without_data_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["codec", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("apex.pretrain.codec", run_name="__main__")
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
