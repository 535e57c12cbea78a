"""Captions encoded to disk: the same conditions as the text encoder gives, resumed after a kill, and never read when they are damaged."""

from __future__ import annotations

import bisect
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apex.data import captions, embeddings
from apex.data.captions import CaptionShards, build, identity
from apex.data.latents import load_cache
from apex.errors import UserError, run_command
from apex.pipeline import DTYPES, CaptionStream, CaptionTable, Pipeline
from apex.provenance import file_sha256
from apex.text import TextPath, captions_cut

CAPTIONS = [
    "a red circle",
    "two blue squares on a dark background",
    "a circle left of a square",
    "a photo of two blue squares left of a green circle",
    "green",
    "a red circle and a red square",
    "a small yellow triangle above a large grey circle on a light background",
]
ALL = torch.arange(len(CAPTIONS) + 1)  # the last is the empty one


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(captions, "PART", 3)


@pytest.fixture(params=["world", "sana", "qwen_image"])
def pipeline(request: pytest.FixtureRequest, tiny_pipeline: Path, tiny_stock: Callable[[str], Path]) -> Path:
    return tiny_pipeline if request.param == "world" else tiny_stock(request.param)


# ------------------------------------------------------------------------------------------- the same conditions


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_the_encoder_gives_for_each_caption_alone(pipeline: Path, tmp_path: Path, dtype: str) -> None:
    """Bit for bit, in any batch; padding is zero, and longest and null are as the other two have them."""
    build(pipeline, CAPTIONS, tmp_path / "e", dtype=dtype)
    stream = CaptionStream(Pipeline(pipeline, dtype=DTYPES[dtype]), [*CAPTIONS, ""])
    shards = CaptionShards(tmp_path / "e", pipeline, CAPTIONS, dtype)
    together = shards[ALL.flip(0)]
    for k in ALL.tolist():
        alone, row = stream[torch.tensor([k])], shards[torch.tensor([k])]
        assert row.embeds.dtype == alone.embeds.dtype and row.mask.dtype == alone.mask.dtype
        assert torch.equal(row.embeds, alone.embeds) and torch.equal(row.mask, alone.mask)
        length = alone.embeds.shape[1]
        assert torch.equal(together.embeds[-1 - k, :length], alone.embeds[0]) and not together.embeds[-1 - k, length:].any()
        assert torch.equal(together.mask[-1 - k].nonzero().flatten(), torch.arange(length))
    null = shards.null(2)
    assert len(null) == 2 and torch.equal(null.embeds, stream.null(2).embeds) and torch.equal(null.mask, stream.null(2).mask)
    table = CaptionTable(stream.pipeline, CAPTIONS, batch=1)
    assert torch.equal(shards.longest().embeds, table.longest().embeds) and torch.equal(shards.lengths, table.lengths)
    assert torch.equal(shards[ALL].embeds, table[ALL].embeds) and torch.equal(shards[ALL].mask, table[ALL].mask)


def test_captions_that_the_encoder_cuts_are_counted(pipeline: Path) -> None:
    """The shortest caption that counts as cut gives as many tokens as a longer one; those before it give fewer and fewer."""
    text = TextPath(pipeline)

    def cut(words: int) -> int:
        return captions_cut(pipeline, ["red " * words])

    def tokens(words: int) -> int:
        return int(text.encode(["red " * words]).mask.sum())

    shortest = bisect.bisect_left(range(3000), 1, key=cut)
    assert 2 < shortest < 3000
    assert tokens(shortest + 1) == tokens(shortest) > tokens(shortest - 2) > tokens(shortest - 3)
    assert captions_cut(pipeline, [*CAPTIONS, "red " * (shortest - 1), "red " * shortest, "red " * (shortest + 7)]) == 2


def test_padding_in_a_batch_changes_last_bits_and_no_more(pipeline: Path, tmp_path: Path) -> None:
    """Of captions encoded at once to the files, and of those that training encodes at once."""
    build(pipeline, CAPTIONS, tmp_path / "one")
    build(pipeline, CAPTIONS, tmp_path / "three", batch=3)
    one, three = (CaptionShards(tmp_path / name, pipeline, CAPTIONS, "fp32") for name in ("one", "three"))
    stream = CaptionStream(Pipeline(pipeline), CAPTIONS)[ALL[:-1]]
    assert torch.equal(three[ALL].mask, one[ALL].mask) and torch.equal(stream.mask, one[ALL[:-1]].mask)
    torch.testing.assert_close(three[ALL].embeds, one[ALL].embeds, rtol=1e-4, atol=1e-5)
    counted = stream.embeds * stream.mask[..., None]
    torch.testing.assert_close(counted, one[ALL[:-1]].embeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [255, 257, 299])
def test_long_captions_keep_every_token_in_bf16(tmp_path: Path, length: int) -> None:
    """There a sum of ones is exact up to 256 alone."""

    class Long:
        def encode(self, texts: list[str]):
            mask = torch.ones(len(texts), length, dtype=torch.bfloat16)
            return captions.Condition(torch.randn(len(texts), length, 4).bfloat16(), mask)

    assert [len(found) for found in captions.encoded(Long(), ["a"], 1)] == [length]
    assert CaptionTable(Long(), ["a", "b"])[torch.tensor([0])].embeds.shape[1] == length


def test_files_are_mapped_and_not_read_as_a_whole(tiny_pipeline: Path, tmp_path: Path) -> None:
    def anonymous() -> int:
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)

    rows, width = 40_000, 512
    save_file(
        {"embeds": torch.randn(rows, width), "lengths": torch.tensor([rows - 3, 2, 1], dtype=torch.int32)}, tmp_path / "a.safetensors"
    )
    made = {"schema": 1} | identity(tiny_pipeline, ["a", "b"], "fp32") | {"width": width}
    made |= {"files": [{"file": "a.safetensors", "sha256": file_sha256(tmp_path / "a.safetensors")}]}
    (tmp_path / "made.json").write_text(json.dumps(made))
    before = anonymous()
    shards = CaptionShards(tmp_path, tiny_pipeline, ["a", "b"], "fp32")
    assert shards[torch.tensor([1, 2])].embeds.shape == (2, 2, width)
    assert anonymous() - before < rows * width  # a quarter of the file
    assert torch.equal(shards.null(1).embeds[0], load_file(tmp_path / "a.safetensors")["embeds"][-1:])


# ------------------------------------------------------------------------------------------------------- resuming


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_call_goes_on_and_ends_with_the_same_bytes(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tiny_pipeline, CAPTIONS, tmp_path / "whole")
    seen, real = [], TextPath.encode

    def dies(self: TextPath, prompts: list[str]):
        seen.extend(prompts)
        if len(seen) == 5:  # in the middle of the second file
            raise KeyboardInterrupt
        return real(self, prompts)

    monkeypatch.setattr(TextPath, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    assert seen[5:] == [*CAPTIONS[3:], ""]  # the first file is not made again
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "whole"]


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:-7] + bytes(7), lambda _: b""])
def test_a_damaged_part_is_made_again(tiny_pipeline: Path, tmp_path: Path, monkeypatch, damage) -> None:
    build(tiny_pipeline, CAPTIONS, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("apex.data.parts.replace_folder", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    part = next(tmp_path.glob(".e.parts-*/files/captions-00001.safetensors"))
    part.write_bytes(damage(part.read_bytes()))
    build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")
    # The same --out with other captions: those of before are not taken.
    build(tiny_pipeline, CAPTIONS[1:], tmp_path / "e")
    assert len(CaptionShards(tmp_path / "e", tiny_pipeline, CAPTIONS[1:], "fp32").lengths) == len(CAPTIONS)


# -------------------------------------------------------------------------------------------------------- defects


@pytest.fixture
def made(tiny_pipeline: Path, tmp_path: Path) -> Path:
    build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    return tmp_path / "e"


def cannot_open(folder: Path, pipeline: Path, expected: str, captions: list[str] = CAPTIONS, dtype: str = "fp32") -> None:
    with pytest.raises(UserError, match=expected) as caught:
        CaptionShards(folder, pipeline, captions, dtype)
    assert "\n" not in str(caught.value) and "make them again with python -m apex.data.embeddings" in str(caught.value)


def test_missing_truncated_or_changed_files(made: Path, tiny_pipeline: Path) -> None:
    file = made / "captions-00001.safetensors"
    data = file.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        cannot_open(made, tiny_pipeline, r"captions-00001\.safetensors: SHA-256 \w{12}, but made\.json says \w{12}: changed or truncated")
    file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    cannot_open(made, tiny_pipeline, "changed or truncated")
    file.unlink()
    cannot_open(made, tiny_pipeline, r"captions-00001\.safetensors: not found, but made\.json lists it")
    cannot_open(made / "nowhere", tiny_pipeline, "made.json: not found")


def test_files_that_do_not_agree_with_the_record(made: Path, tiny_pipeline: Path) -> None:
    record, file = json.loads((made / "made.json").read_text()), made / "captions-00002.safetensors"
    good = load_file(file)
    for tensors, expected in (
        ({"embeds": good["embeds"]}, "expected tensors `embeds` and `lengths`"),
        ({"embeds": good["embeds"][:-1].clone(), "lengths": good["lengths"]}, "expected as many rows"),
        ({"embeds": good["embeds"][:, :-1].contiguous(), "lengths": good["lengths"]}, "expected as many rows"),
    ):
        save_file(tensors, file)
        record["files"][2]["sha256"] = file_sha256(file)
        (made / "made.json").write_text(json.dumps(record))
        cannot_open(made, tiny_pipeline, expected)
    record["files"].pop()
    (made / "made.json").write_text(json.dumps(record))
    cannot_open(made, tiny_pipeline, "files: found 6 captions, expected 8, one of them empty")
    for text in ("{", "[]", "{}", '{"files": [{}], "width": 3}'):
        (made / "made.json").write_text(text)
        cannot_open(made, tiny_pipeline, r"made\.json: (not JSON|found a JSON list|found no list `files`)")


def test_embeddings_of_something_else_are_refused(made: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    cannot_open(made, tiny_pipeline, r"made\.json: captions: found '\w{12}', expected '\w{12}' of this run", captions=CAPTIONS[::-1])
    cannot_open(made, tiny_pipeline, "dtype: found 'fp32', expected 'bf16'", dtype="bf16")
    for part, name in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        other = tmp_path / part
        shutil.copytree(tiny_pipeline, other)
        (other / part / name).write_text((other / part / name).read_text() + " ")
        cannot_open(made, other, rf"made\.json: {part}: found '\w{{12}}', expected")
    (other / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    cannot_open(made, other, "pipeline_class: found '', expected 'SanaPipeline'")


def test_an_embedding_that_is_not_finite_is_refused(tiny_pipeline: Path, tmp_path: Path, monkeypatch) -> None:
    real = TextPath.encode

    def broken(self: TextPath, prompts: list[str]):
        cond = real(self, prompts)
        return cond if prompts != [CAPTIONS[4]] else captions.Condition(cond.embeds / 0, cond.mask)

    monkeypatch.setattr(TextPath, "encode", broken)
    with pytest.raises(UserError, match="caption 'green': its embedding is not finite; check the text encoder"):
        build(tiny_pipeline, CAPTIONS, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_command(tiny_pipeline: Path, tiny_cache: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def call(*more: str) -> int:
        line = ["x", "--pipeline", str(tiny_pipeline), "--cache", str(tiny_cache), "--out", str(tmp_path / "e"), *more]
        monkeypatch.setattr(sys, "argv", line)
        return run_command(embeddings.main)

    captions = load_cache(tiny_cache).captions
    assert call("--dtype", "bf16") == 0
    assert re.search(rf"e: {len(captions)} captions, \d+ tokens of 16 numbers", capsys.readouterr().out)
    assert len(CaptionShards(tmp_path / "e", tiny_pipeline, captions, "bf16").lengths) == len(captions) + 1
    assert call("--batch", "0") == 2 and "--batch: found 0, expected a whole number of at least 1" in capsys.readouterr().err
    (tmp_path / "e/made.json").unlink()
    assert call() == 2 and "found a folder without made.json" in capsys.readouterr().err
