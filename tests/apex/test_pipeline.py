"""The frozen parts of a pipeline: captions to conditions, latents to images, and damaged folders."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from apex.data.latents import encode_images, load_cache
from apex.data.shards import load_images
from apex.errors import UserError
from apex.pipeline import CaptionTable, Pipeline, to_float


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> Pipeline:
    return Pipeline(tiny_pipeline)


CAPTIONS = ["a red circle", "two blue squares on a dark background", "a circle left of a square"]


def test_text_encoder_and_codec_are_frozen(pipeline):
    for module in (pipeline.text.encoder, pipeline.vae):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    cond = pipeline.encode(CAPTIONS)
    assert not cond.embeds.requires_grad and torch.isfinite(cond.embeds).all()


def test_a_caption_is_encoded_the_same_in_any_batch(pipeline):
    together = pipeline.encode(CAPTIONS)
    for k, caption in enumerate(CAPTIONS):
        alone = pipeline.encode([caption])
        length = alone.embeds.shape[1]
        assert int(together.mask[k].sum()) == length and alone.mask.min() == 1
        torch.testing.assert_close(together.embeds[k, :length], alone.embeds[0], rtol=1e-4, atol=1e-5)


def test_the_order_of_words_is_in_the_embeddings(pipeline):
    a, b = pipeline.encode(["a red circle and a blue square", "a blue circle and a red square"]).embeds
    assert float((a.sort(0).values - b.sort(0).values).abs().max()) > 1e-4  # not the same tokens in another order


def test_the_empty_caption_is_a_condition_of_its_own(pipeline):
    null = pipeline.encode([""])
    assert len(null) == 1 and int(null.mask.sum()) >= 1


def test_the_table_holds_what_encode_gives(pipeline):
    table = CaptionTable(pipeline, CAPTIONS, batch=2)
    for k, caption in enumerate([*CAPTIONS, ""]):
        alone, row = pipeline.encode([caption]), table[torch.tensor([k])]
        assert torch.equal(row.mask, alone.mask)
        torch.testing.assert_close(row.embeds, alone.embeds, rtol=1e-4, atol=1e-5)
    assert torch.equal(table.null(2).embeds[1], table[torch.tensor([table.empty])].embeds[0])


def test_decoding_undoes_the_scale_of_encoding(tiny_pipeline, tmp_path, tiny_shards):
    """The same codec with other scaling_factor and shift_factor gives the same image."""
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    scaled = Pipeline(folder)
    scaled.vae.register_to_config(scaling_factor=0.4, shift_factor=0.2)
    scaled.vae.save_pretrained(folder / "vae")
    images = load_images(tiny_shards)[:4]
    plain, other = Pipeline(tiny_pipeline), Pipeline(folder)
    a, b = encode_images(plain.vae, images), encode_images(other.vae, images)
    assert float((a - b).abs().max()) > 0.05
    assert int((plain.decode(a).int() - other.decode(b).int()).abs().max()) <= 1
    assert plain.decode(a).shape == (4, 32, 32, 3) and plain.decode(a).dtype == torch.uint8


def test_decoded_images_keep_within_their_range(pipeline, tiny_cache):
    latents = load_cache(tiny_cache).latents[:2].float()
    images = pipeline.decode(1e3 * latents)
    assert images.dtype == torch.uint8 and images.shape[-1] == 3


def test_to_float_maps_bytes_to_minus_one_and_one():
    found = to_float(np.array([[[[0, 255, 51]]]], dtype=np.uint8))
    assert found.shape == (1, 3, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder"])
def test_a_missing_part_is_named(tiny_pipeline, tmp_path, part: str):
    shutil.copytree(tiny_pipeline, tmp_path / "p", ignore=shutil.ignore_patterns(part))
    with pytest.raises(UserError, match=f"has no folder {part}/"):
        Pipeline(tmp_path / "p")


@pytest.mark.parametrize(
    "part",
    [
        "vae",
        pytest.param(
            "text_encoder",
        ),
        pytest.param("tokenizer"),
    ],
)
def test_a_damaged_part_is_one_clear_line(tiny_pipeline, tmp_path, part: str):
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    name = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors", "tokenizer": "tokenizer.json"}[part]
    file = tmp_path / "p" / part / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError) as error:
        Pipeline(tmp_path / "p")
    assert "\n" not in str(error.value)
