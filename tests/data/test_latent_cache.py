"""The latent cache: equal to encoding by hand, resumed after a kill, and never read when it is damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apex.data import cache, latents
from apex.data.latents import build, encode_images, load_cache, load_vae, pixels_per_latent
from apex.data.readers import Skipped
from apex.data.shards import Sample, encode_png, load_images, world_sample, write_shards
from apex.data.world import PromptSampler
from apex.errors import UserError, run_command
from apex.provenance import file_sha256

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 2,
    "scaling_factor": 0.7,
    "shift_factor": 0.3,
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(latents, "PART", 4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    AutoencoderKL(**KL).save_pretrained(path / "vae")
    return path


@pytest.fixture
def data(scenes: list[Sample], tmp_path: Path) -> Path:
    # Ten images, nine captions: one caption twice.
    samples = [*scenes[:9], scenes[9]._replace(caption=scenes[0].caption)]
    write_shards(samples, tmp_path / "shards", {}, shard_size=6)
    return tmp_path / "shards"


def test_cache_equals_encoding_by_hand(pipeline: Path, data: Path, scenes: list[Sample], tmp_path: Path) -> None:
    made = build(pipeline, data, tmp_path / "cache", batch=2)
    found = load_cache(tmp_path / "cache")
    with torch.no_grad():
        z = load_vae(pipeline).encode(load_images(data).float() / 127.5 - 1).latent_dist.mode()
    assert found.latents.dtype == torch.float16
    assert found.latents.shape == (10, 3, 8, 8)
    torch.testing.assert_close(found.latents.float(), (z - 0.3) * 0.7, atol=2e-3, rtol=2e-3)
    assert found.caption_index.dtype == torch.int64
    assert [found.captions[i] for i in found.caption_index] == [s.caption for s in scenes[:9]] + [scenes[0].caption]
    assert len(found.captions) == len(set(found.captions)) == len({s.caption for s in scenes[:9]})
    assert made["samples"] == 10
    assert made["latent_shape"] == [3, 8, 8]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "shards"]  # no parts are left


def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    pipeline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(pipeline, data, tmp_path / "whole", batch=2)
    calls = 0

    def dies(vae: object, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the second part
            raise KeyboardInterrupt
        return encode_images(vae, images)

    monkeypatch.setattr(latents, "encode_images", dies)
    with pytest.raises(KeyboardInterrupt):
        build(pipeline, data, tmp_path / "cache", batch=2)
    assert not (tmp_path / "cache").exists()
    build(pipeline, data, tmp_path / "cache", batch=2)
    assert calls == 4 + 3  # five batches in all; the first part's two are not encoded again
    for name in ("latents.safetensors", "captions.json", "made.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_part_is_made_again_and_parts_of_other_data_are_not_taken(
    pipeline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(pipeline, data, tmp_path / "whole", batch=2)
    monkeypatch.setattr(latents, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="cache: cannot be written: found a full disk"):
        build(pipeline, data, tmp_path / "cache", batch=2)
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    monkeypatch.setattr(latents, "PART", 4)
    parts = sorted(tmp_path.glob(".cache.parts-*/*"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:-7])
    build(pipeline, data, tmp_path / "cache", batch=2)
    assert (tmp_path / "cache" / "latents.safetensors").read_bytes() == (tmp_path / "whole" / "latents.safetensors").read_bytes()
    # The same --out with other settings: the latents are new ones.
    build(pipeline, data, tmp_path / "cache", batch=2, resolution=8)
    assert load_cache(tmp_path / "cache").latents.shape == (10, 3, 4, 4)


def tree_of_defects(scenes: list[Sample], out: Path) -> Path:
    """Ten images; of numbers 1 and 6 the bytes are damaged, 3 has no caption, and a file is of unknown kind."""
    out.mkdir()
    for number, one in enumerate(scenes):
        (out / f"{number}.png").write_bytes(encode_png(one.image)[: 60 if number in (1, 6) else None])
        if number != 3:
            (out / f"{number}.txt").write_text(one.caption)
    (out / "notes.xyz").write_text("x")
    return out


def test_what_is_skipped_is_counted_and_the_rest_is_as_without_it(
    pipeline: Path, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tree_of_defects(scenes, tmp_path / "data")
    with pytest.raises(UserError, match=r"notes.xyz: found a file of unknown kind"):
        build(pipeline, data, tmp_path / "cache", batch=2)
    with pytest.raises(UserError, match=r"found 4 defects, expected 3 at most \(data.skip_limit\)"):
        build(pipeline, data, tmp_path / "cache", batch=2, skipped=Skipped(3))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["data"]

    whole = build(pipeline, data, tmp_path / "whole", batch=2, skipped=Skipped(4))
    assert whole["skipped"]["count"] == 4 and whole["samples"] == 7
    for part in ("1.png: found", "3.png: caption missing", "6.png: found", "notes.xyz: found a file of unknown kind"):
        assert sum(part in line for line in whole["skipped"]["first"]) == 1
    found = load_cache(tmp_path / "whole")
    assert found.left_out == {"skipped": whole["skipped"]}
    assert [found.captions[k] for k in found.caption_index] == [s.caption for k, s in enumerate(scenes) if k not in (1, 3, 6)]
    good = torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for k, s in enumerate(scenes) if k not in (1, 3, 6)]))
    torch.testing.assert_close(found.latents.float(), encode_images(load_vae(pipeline), good), atol=2e-3, rtol=2e-3)

    def dies(vae: object, images: torch.Tensor, calls: list[int] = []) -> torch.Tensor:  # noqa: B006
        calls.append(1)
        if len(calls) == 3:  # behind the first part
            raise KeyboardInterrupt
        return encode_images(vae, images)

    monkeypatch.setattr(latents, "encode_images", dies)
    with pytest.raises(KeyboardInterrupt):
        build(pipeline, data, tmp_path / "cache", batch=2, skipped=Skipped(4))
    monkeypatch.setattr(latents, "encode_images", encode_images)
    assert list(tmp_path.glob(".cache.parts-*/00000.safetensors"))
    build(pipeline, data, tmp_path / "cache", batch=2, skipped=Skipped(4))
    for name in ("latents.safetensors", "captions.json", "made.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_encoders_take_the_same_path(scenes: list[Sample], tmp_path: Path) -> None:
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage

    torch.manual_seed(0)
    images = torch.stack([torch.from_numpy(s.image.copy()).permute(2, 0, 1) for s in scenes[:2]])
    pixels = images.float() / 127.5 - 1

    def saved(vae: torch.nn.Module, name: str) -> torch.nn.Module:
        vae.save_pretrained(tmp_path / name / "vae")
        return load_vae(tmp_path / name)

    with torch.no_grad():
        dc = saved(
            AutoencoderDC(
                latent_channels=4,
                attention_head_dim=4,
                encoder_block_types="ResBlock",
                decoder_block_types="ResBlock",
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()),
                scaling_factor=0.4,
            ),
            "dc",
        )
        assert pixels_per_latent(dc) == 4
        torch.testing.assert_close(encode_images(dc, images), dc.encode(pixels).latent * 0.4)
        assert encode_images(dc, images).shape == (2, 4, 4, 4)

        mean, std = [0.5, -0.5], [2.0, 4.0]
        qwen = saved(
            AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=2,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=mean,
                latents_std=std,
            ),
            "qwen",
        )
        assert pixels_per_latent(qwen) == 4
        z = qwen.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        found = encode_images(qwen, images)
        assert found.shape == (2, 2, 4, 4)
        for c in range(2):
            torch.testing.assert_close(found[:, c], (z[:, c] - mean[c]) / std[c])

        whitened = saved(AutoencoderKL(**(KL | {"latents_mean": [1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 3.0]})), "whitened")
        assert pixels_per_latent(whitened) == 2
        z = whitened.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(encode_images(whitened, images)[:, 2], (z[:, 2] - 2.0) / 3.0 * 0.7)


# ----------------------------------------------------------------------------------------- defects


def test_pipelines_that_cannot_be_used(pipeline: Path, data: Path, tmp_path: Path) -> None:
    def fails(path: Path, expected: str) -> None:
        with pytest.raises(UserError) as caught:
            build(path, data, tmp_path / "cache")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    fails(tmp_path, "not found; --pipeline must be")
    copy = tmp_path / "copy" / "vae"
    copy.mkdir(parents=True)
    config = json.loads((pipeline / "vae" / "config.json").read_text())
    weights = (pipeline / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    (copy / "config.json").write_text("{")
    fails(copy.parent, "not JSON")
    (copy / "config.json").write_text(json.dumps(config | {"_class_name": "os.system"}))
    fails(copy.parent, "_class_name is 'os.system'; expected one of AutoencoderKL,")
    (copy / "config.json").write_text(json.dumps(config))
    fails(copy.parent, "; fetch or make them again")
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-100])
    fails(copy.parent, "; fetch or make them again")
    (copy / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "diffusion_pytorch_model.bin")  # a pickle is never opened
    fails(copy.parent, "; fetch or make them again")


def test_images_that_do_not_fit_the_encoder(pipeline: Path, tmp_path: Path, sampler: PromptSampler) -> None:
    samples = [world_sample(i, seed=1, resolution=16, sampler=sampler) for i in range(6)]
    write_shards([s._replace(image=s.image[:15, :15]) for s in samples], tmp_path / "odd", {})
    with pytest.raises(UserError, match="images are 15x15; this encoder needs sides that are multiples of 2: give --resolution"):
        build(pipeline, tmp_path / "odd", tmp_path / "cache", batch=2)
    # The odd one out stands alone in the second part.
    write_shards([*samples[:4], samples[4]._replace(image=samples[4].image[:12, :12])], tmp_path / "mixed", {})
    with pytest.raises(UserError, match=f"sample {samples[4].key}: image is 12x12, the first one 16x16"):
        build(pipeline, tmp_path / "mixed", tmp_path / "cache", batch=1)


def test_latents_out_of_range_are_refused(pipeline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "encode_images", lambda vae, images: encode_images(vae, images) * 1e6)
    with pytest.raises(UserError, match="not finite in float16"):
        build(pipeline, data, tmp_path / "cache")


def test_a_folder_that_is_no_cache_is_not_replaced(pipeline: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found a folder without"):
        build(pipeline, data, data)
    assert (data / "index.json").exists()


@pytest.fixture
def made(pipeline: Path, data: Path, tmp_path: Path) -> Path:
    build(pipeline, data, tmp_path / "cache", batch=2)
    return tmp_path / "cache"


def cannot_load(path: Path, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_cache(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "make the cache again" in str(caught.value)


@pytest.mark.parametrize("name", ["latents.safetensors", "captions.json"])
def test_missing_truncated_or_changed_files(name: str, made: Path) -> None:
    data = (made / name).read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        (made / name).write_bytes(data[:size])
        cannot_load(made, "truncated or changed")
    changed = bytearray(data)
    changed[-5] ^= 1
    (made / name).write_bytes(changed)
    cannot_load(made, "truncated or changed")
    (made / name).unlink()
    cannot_load(made, f"{name}: not found")
    cannot_load(made / "nowhere", "not found")


def test_damaged_record(made: Path) -> None:
    for text in ("{", "[]", "{}"):
        (made / "made.json").write_text(text)
        cannot_load(made, "made.json")


def _rewrite(path: Path, tensors: dict[str, torch.Tensor], captions: list[str] | None = None) -> None:
    """Writes other contents with right checksums, so that the checks behind the checksum are reached."""
    save_file(tensors, path / "latents.safetensors")
    if captions is not None:
        (path / "captions.json").write_text(json.dumps({"captions": captions}))
    record = json.loads((path / "made.json").read_text())
    record["sha256"] = {name: file_sha256(path / name) for name in ("latents.safetensors", "captions.json")}
    (path / "made.json").write_text(json.dumps(record))


def test_contents_that_do_not_agree(made: Path) -> None:
    good = load_file(made / "latents.safetensors")
    captions = load_cache(made).captions
    latents, index = good["latents"], good["caption_index"]
    for tensors in (
        {"latents": latents},
        {"latents": latents.float(), "caption_index": index},
        {"latents": latents[0].clone(), "caption_index": index},
    ):
        _rewrite(made, tensors)
        cannot_load(made, "expected latents (N, C, h, w) float16")
    for tensors in ({"latents": latents[:5].clone(), "caption_index": index}, {"latents": latents, "caption_index": index[:5].clone()}):
        _rewrite(made, tensors)
        cannot_load(made, "counts do not agree")
    _rewrite(made, good, captions[:-1])
    cannot_load(made, "counts do not agree")
    _rewrite(made, {"latents": latents, "caption_index": index + 1}, captions)
    cannot_load(made, "caption_index runs from 1 to")
    _rewrite(made, good, captions)
    assert load_cache(made).captions == captions


def test_command(pipeline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cache", "--pipeline", str(pipeline), "--data", str(data), "--out", str(tmp_path / "cache"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_command(cache.main) == 0
    assert "10 latents of 3x8x8, 9 captions" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments[:3], "--data", str(tmp_path / "gone"), *arguments[5:]])
    assert run_command(cache.main) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'gone'}: no such file or folder")
