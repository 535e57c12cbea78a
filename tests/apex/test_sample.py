"""Prompts in, images out: the same seed gives the same images, in any batch, after any interruption."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apex import generator, sample
from apex.command import REFERENCES
from apex.config import load
from apex.data.prompts import load_prompts, prompts_sha256, read_layout
from apex.errors import UserError, run_command
from apex.generator import Generator, generate, reference_images
from apex.provenance import OF_THE_RUN
from apex.seeds import derive


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return load_prompts(load_prompts_path(), limit=6)


def load_prompts_path() -> Path:
    return Path(sample.__file__).parent / "data" / "prompts" / "world" / "test.jsonl"


@pytest.fixture
def run_folder(make_loop, tmp_path) -> Path:
    """An exported `apex` run of a few steps."""
    loop = make_loop("apex", train={"learning_rate": 1e-2})
    loop.fit(2)
    loop.export(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def command(tiny_profile, monkeypatch, tmp_path):
    """command("images", row="teacher", nfe=2, ...) runs `python -m apex.sample`; returns the exit code and the folder."""

    def run(place: str, **options) -> tuple[int, Path]:
        profile = tiny_profile(**options.pop("profile", {}))
        options = {"row": "teacher", "nfe": 2, "config": profile, "out": tmp_path / place} | options
        arguments = [text for k, v in options.items() for text in (f"--{k}", *map(str, v if isinstance(v, list) else [v]))]
        monkeypatch.setattr(sys, "argv", ["apex.sample", *arguments])
        return run_command(sample.main), Path(options["out"])

    return run


def images(folder: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(folder)): np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], within: int = 0) -> bool:
    return a.keys() == b.keys() and all(np.abs(a[k].astype(int) - b[k]).max() <= within for k in a)


# ------------------------------------------------------------------------------------------------------ images


def test_the_layout_is_genevals_and_says_where_the_images_come_from(command, run_folder, rows):
    code, out = command("images", row="apex", run=run_folder, nfe=2, seed=3)
    assert code == 0
    found = images(out)
    assert list(found) == [f"{i:05d}/samples/{k:04d}.png" for i in range(6) for k in range(2)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in found.values())
    assert [row for _, row, _ in read_layout(out)] == rows
    made = json.loads((out / "made.json").read_text())
    assert (made["row"], made["method"], made["seed"], made["nfe"], made["mode"]) == ("apex", "apex", 3, 2, "few")
    assert made["sigmas"] == [1.0, 0.6] and made["guidance"] == 1.0 and made["split"] == "test"
    assert made["prompts_sha256"] == prompts_sha256(load_prompts_path())
    run = json.loads((run_folder / "made.json").read_text())
    assert {key: made[key] for key in OF_THE_RUN} == {key: run.get(key) for key in OF_THE_RUN}
    assert made["run"]["method"] == "apex" and made["revision"] == 2 and made["teacher"], "every record of the images has these"
    assert set(made["prompts_seen"]) == set(run["prompts_seen"]), "README: every run's record says how many"
    assert made["parameters"] > 1000 and made["wall_seconds"] > 0 and made["hardware"] and made["versions"]["torch"]
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".images")]


def test_every_image_can_be_made_again_alone_from_its_recorded_seed(command, run_folder, rows):
    """Image j of prompt i: noise of derive(seed, "image", i, j); the first of it starts, the rest re-noises."""
    _, out = command("images", row="apex", run=run_folder, nfe=2, seed=3)
    generator = Generator.load(run_folder, nfe=2)
    seed = json.loads((out / "made.json").read_text())["seed"]
    for i, j in ((0, 0), (0, 1), (4, 1)):
        source = torch.Generator().manual_seed(derive(seed, "image", i, j))
        noise = torch.randn(2, *generator.latent_shape, generator=source)
        picture = generator.decode(generator.denoise(generator.encode([rows[i]["prompt"]]), noise[:1], [noise[1:]]))[0].numpy()
        written = np.asarray(Image.open(out / f"{i:05d}" / "samples" / f"{j:04d}.png"))
        assert np.abs(picture.astype(int) - written).max() <= 1


def test_the_seed_makes_the_images(command, run_folder):
    one, again, other = (images(command(f"s{k}", row="apex", run=run_folder, seed=s)[1]) for k, s in enumerate((0, 0, 1)))
    assert same(one, again)
    assert not any(np.array_equal(one[k], other[k]) for k in one)
    first = list(one.values())
    assert all(not np.array_equal(first[0], image) for image in first[1:])  # no two share a noise


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_images_do_not_depend_on_the_batch_size(run_folder, rows, size: int):
    """Up to one level in 255: sums are taken in another order, and captions are padded to the batch's longest."""
    generator = Generator.load(run_folder, nfe=2)
    expected = {i: pictures for i, pictures in generate(generator, rows, [0, 1, 2, 3], seed=0, images=2, batch=8)}
    decode, sizes = generator.decode, []
    generator.decode = lambda latents: sizes.append(len(latents)) or decode(latents)
    found = {i: pictures for i, pictures in generate(generator, rows, [0, 1, 2, 3], seed=0, images=2, batch=size)}
    assert max(sizes) <= size and sum(sizes) == 8
    assert found.keys() == expected.keys()
    assert all(np.abs(found[i].astype(int) - expected[i]).max() <= 1 for i in expected)
    assert float(np.std(expected[0])) > 1


def test_a_prompts_images_do_not_depend_on_the_other_prompts(run_folder, rows):
    generator = Generator.load(run_folder, nfe=1)
    alone = dict(generate(generator, rows, [3], seed=0, images=2, batch=8))
    among = dict(generate(generator, rows, [1, 3, 5], seed=0, images=2, batch=8))
    assert np.abs(alone[3].astype(int) - among[3]).max() <= 1


def test_the_prompt_matters(run_folder, rows):
    generator = Generator.load(run_folder, nfe=1)
    noise, _ = generator.noise(0, [(0, 0), (0, 0)])
    pictures = generator.denoise(generator.encode([rows[0]["prompt"], rows[5]["prompt"]]), noise)
    assert float((pictures[0] - pictures[1]).abs().max()) > 1e-4


# ------------------------------------------------------------------------------------------------- the teacher


def test_the_teacher_is_guided_and_pays_for_it(tiny_pipeline, rows):
    noise, cond, outs = None, None, {}
    for guidance in (1.0, 0.0, 2.5):
        teacher = Generator.load(tiny_pipeline, nfe=3, guidance=guidance)
        assert teacher.mode == "multi" and teacher.passes == (3 if guidance == 1.0 else 6)
        assert teacher.sigmas == pytest.approx([1, 2 / 3, 1 / 3])
        if noise is None:
            noise, _ = teacher.noise(0, [(0, 0), (1, 0)])
            cond = teacher.encode([rows[0]["prompt"], rows[1]["prompt"]])
        counted = []
        teacher.backbone.transformer.register_forward_hook(lambda _m, args, _o, counted=counted: counted.append(len(args[0])))
        outs[guidance] = teacher.denoise(cond, noise)
        assert sum(counted) == teacher.passes * 2
    with torch.no_grad():
        null = teacher.encode(["", ""])
        x, plain = noise, noise
        for now in (1.0, 2 / 3, 1 / 3):
            t = torch.full((2,), now)
            f, f0 = teacher.backbone(x, t, cond), teacher.backbone(x, t, null)
            x = x - (f0 + 2.5 * (f - f0)) / 3
            plain = plain - teacher.backbone(plain, t, null) / 3
    torch.testing.assert_close(outs[2.5], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outs[0.0], plain, rtol=1e-4, atol=1e-5)  # guidance 0 is the empty caption
    assert float((outs[1.0] - outs[2.5]).abs().max()) > 1e-4


def test_the_profiles_guidance_is_the_teachers_alone(command, run_folder):
    _, out = command("t", row="teacher", profile={"guidance": 3.5})
    assert json.loads((out / "made.json").read_text())["guidance"] == 3.5
    _, out = command("r", row="apex", run=run_folder, profile={"guidance": 3.5})
    assert json.loads((out / "made.json").read_text())["guidance"] == 1.0


# ------------------------------------------------------------------------------------------------ interruptions


def stop_after(monkeypatch, count: int) -> list[int]:
    """Kills the call in the middle of writing prompt number `count`; returns the prompts that were begun."""
    begun, write = [], generator.write_layout

    def stopping(out, index, row, pictures):
        begun.append(index)
        if len(begun) > count:
            write(out, index, row, pictures[:1])
            (out / f"{index:05d}" / "metadata.jsonl").unlink()
            raise KeyboardInterrupt
        return write(out, index, row, pictures)

    monkeypatch.setattr(generator, "write_layout", stopping)
    return begun


@pytest.mark.parametrize("row", ["apex", "real"])
def test_interrupted_sampling_continues_where_it_was(command, run_folder, monkeypatch, row: str):
    options = {"row": row, "nfe": 1} | ({"run": run_folder} if row == "apex" else {})
    _, whole = command("whole", **options)
    with monkeypatch.context() as patched:
        begun = stop_after(patched, 2)
        assert command("parts", **options)[0] == 130, "as Ctrl-C"
    assert begun == [0, 1, 2]
    assert not (whole.parent / "parts").exists()
    with monkeypatch.context() as patched:
        begun = stop_after(patched, 99)
        _, parts = command("parts", **options)
    assert begun == [2, 3, 4, 5]
    assert same(images(parts), images(whole), within=1 if row == "apex" else 0)
    assert not [p for p in whole.parent.iterdir() if p.name.startswith((".parts", ".whole"))]


def test_images_of_other_settings_are_never_taken_for_this_calls(command, run_folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        assert command("out", row="apex", run=run_folder, nfe=1, seed=0)[0] == 130, "as Ctrl-C"
    for change in ({"seed": 1}, {"nfe": 2}, {"split": "unseen"}, {"profile": {"prompts": {"per_task": 2, "images_per_prompt": 2}}}):
        with monkeypatch.context() as patched:
            begun = stop_after(patched, 0)
            assert command("out", **({"row": "apex", "run": run_folder, "nfe": 1} | change))[0] == 130, "as Ctrl-C"
        assert begun == [0], change


def test_a_folder_in_work_with_fewer_images_a_prompt_is_not_continued(command, run_folder, monkeypatch):
    for count, stop in ((2, 2), (3, 0)):
        with monkeypatch.context() as patched:
            begun = stop_after(patched, stop)
            profile = {"prompts": {"per_task": 1, "images_per_prompt": count}}
            assert command("out", row="apex", run=run_folder, nfe=1, profile=profile)[0] == 130, "as Ctrl-C"
    assert begun == [0]


def test_images_of_another_teacher_are_never_taken_for_this_ones(command, tiny_pipeline, monkeypatch, tmp_path):
    import shutil

    shutil.copytree(tiny_pipeline, tmp_path / "teacher")
    profile = {"pipeline": str(tmp_path / "teacher")}
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        assert command("out", profile=profile)[0] == 130, "as Ctrl-C"
    from diffusers import SanaTransformer2DModel

    other = SanaTransformer2DModel.from_pretrained(tmp_path / "teacher" / "transformer")
    torch.nn.init.normal_(other.proj_out.weight)
    other.save_pretrained(tmp_path / "teacher" / "transformer")
    begun = stop_after(monkeypatch, 99)
    command("out", profile=profile)
    assert begun == [0, 1, 2, 3, 4, 5]


def test_an_earlier_result_is_replaced_whole(command):
    _, out = command("out", row="noise", nfe=1)
    stale = out / "00099" / "samples" / "0000.png"
    stale.parent.mkdir(parents=True)
    shutil.copy(out / "00005" / "samples" / "0000.png", stale)
    before = images(out)
    command("out", row="noise", nfe=1, seed=1)
    assert not stale.exists()
    assert not same(images(out), before)


# ------------------------------------------------------------------------------------------------- reference rows


@pytest.mark.parametrize("kind", REFERENCES)
def test_reference_images_are_repeatable_and_follow_the_seed(rows, kind: str):
    first, again, other = (reference_images(kind, rows, 2, seed=s, images=3, resolution=24) for s in (0, 0, 1))
    assert first.shape == (3, 24, 24, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len({image.tobytes() for image in first}) == (1 if kind == "mean" else 3)


def test_real_renders_differ_and_their_mean_is_blurred(rows):
    real = reference_images("real", rows, 0, seed=0, images=8, resolution=32).astype(float)
    mean = reference_images("mean", rows, 0, seed=0, images=8, resolution=32).astype(float)
    assert mean.std(0).max() == 0 < real.std(0).mean()  # one picture for all images
    contrast = [np.abs(np.diff(x, axis=2)).mean() for x in (real, mean)]
    assert contrast[1] < 0.7 * contrast[0]


def test_noise_is_uniform(rows):
    noise = reference_images("noise", rows, 0, seed=0, images=4, resolution=64)
    assert abs(noise.mean() - 127.5) < 1.5 and abs(noise.std() - 73.9) < 1
    assert noise.min() == 0 and noise.max() == 255


def test_shuffled_renders_are_those_of_another_prompt_each(rows, monkeypatch):
    """One cycle through all prompts: none keeps its own, and none is shown twice."""
    shown = []
    from apex.data import world

    scene_for = world.scene_for
    monkeypatch.setattr(world, "scene_for", lambda row, *a, **k: shown.append(rows.index(row)) or scene_for(row, *a, **k))
    for index in range(len(rows)):
        reference_images("shuffled", rows, index, seed=0, images=1, resolution=16)
    assert sorted(shown) == list(range(len(rows)))
    assert all(a != b for a, b in enumerate(shown))


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_reference_row_needs_no_network(command, monkeypatch, kind: str):
    monkeypatch.setattr(Generator, "load", lambda *_, **__: (_ for _ in ()).throw(AssertionError("a network was opened")))
    code, out = command("ref", row=kind, nfe=1)
    assert code == 0 and len(images(out)) == 12
    made = json.loads((out / "made.json").read_text())
    assert (made["row"], made["family"], made["backbone"], made["parameters"]) == (kind, "reference", "renderer", 0)


# ------------------------------------------------------------------------------------------------ splits and errors


def test_several_splits_are_made_by_one_call(command, tmp_path):
    code, _ = command("{split}/noise", row="noise", nfe=1, split=["test", "unseen"])
    assert code == 0
    made = {s: json.loads((tmp_path / s / "noise" / "made.json").read_text()) for s in ("test", "unseen")}
    assert {s: m["split"] for s, m in made.items()} == {"test": "test", "unseen": "unseen"}
    assert made["test"]["prompts_sha256"] != made["unseen"]["prompts_sha256"]


def test_several_nfes_in_one_call_are_the_images_of_single_calls(command, run_folder, tmp_path):
    assert command("together{nfe}/images", row="apex", run=run_folder, nfe=[1, 2])[0] == 0
    for nfe in (1, 2):
        _, single = command(f"single{nfe}/images", row="apex", run=run_folder, nfe=nfe)
        assert same(images(tmp_path / f"together{nfe}" / "images"), images(single))
        assert json.loads((tmp_path / f"together{nfe}/images/made.json").read_text())["nfe"] == nfe
    assert command("{row}/images", row=["real", "noise"], nfe=0)[0] == 0
    assert same(images(tmp_path / "real" / "images"), images(command("alone/images", row="real", nfe=0)[1]))
    assert not same(images(tmp_path / "real" / "images"), images(tmp_path / "noise" / "images"))


def test_a_point_that_fails_loses_no_other(command, run_folder, monkeypatch, capsys, tmp_path):
    """The workflow removes the named folders of a failed call; the next call makes only what was missing."""
    drawn, pictures = [], Generator.pictures

    def failing(self, prompts, *rest):
        if len(self.sigmas) == fails_at:
            raise UserError("the second one fails")
        drawn.append(len(self.sigmas))
        return pictures(self, prompts, *rest)

    monkeypatch.setattr(Generator, "pictures", failing)
    fails_at = 2
    code, _ = command("nfe{nfe}/images", row="apex", run=run_folder, nfe=[1, 2])
    assert code == 2 and "the second one fails" in capsys.readouterr().err
    assert set(drawn) == {1} and not list(tmp_path.glob("nfe*/images"))
    drawn.clear()
    fails_at = 0
    assert command("nfe{nfe}/images", row="apex", run=run_folder, nfe=[1, 2])[0] == 0
    assert set(drawn) == {2} and all(len(images(tmp_path / f"nfe{nfe}" / "images")) == 12 for nfe in (1, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"row": "apex", "nfe": 1}, "--run: missing; row 'apex' needs the folder of its exported run"),
        ({"row": "noise", "split": ["test", "unseen"]}, "--split test unseen: several need `{split}` in --out"),
        ({"row": "noise", "nfe": [1, 2]}, "--nfe 1 2: several need `{nfe}` in --out"),
        ({"row": ["noise", "teacher"]}, "--row noise teacher: expected one row, or several of "),
        ({"row": "noise", "prompts": "nowhere.jsonl"}, "nowhere.jsonl: prompt file not found"),
        ({"row": "teacher", "profile": {"pipeline": "nowhere"}}, "nowhere: has no folder vae/"),
    ],
    ids=["no run", "no place for two splits", "no place for two NFEs", "rows of two kinds", "no prompts", "no pipeline"],
)
def test_a_wrong_call_is_one_line(command, capsys, options: dict, said: str):
    code, out = command("out", **options)
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_one_line(command, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _ = command("file/images", row="noise", nfe=1)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_full_disk_while_sampling_is_one_line_and_nothing_half_is_shown(command, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        code, out = command("out", row="noise", nfe=1)
    assert code == 2 and "found a full disk, expected room for it" in capsys.readouterr().err
    assert not out.exists()
    assert command("out", row="noise", nfe=1)[0] == 0 and len(images(out)) == 12


def test_a_qwen_run_can_be_sampled(make_loop, qwen_pipeline, rows, tmp_path):
    loop = make_loop("apex", pipeline=str(qwen_pipeline))
    loop.fit(1)
    loop.export(tmp_path / "run")
    generator = Generator.load(tmp_path / "run", nfe=1)
    assert generator.latent_shape == tuple(loop.latents.shape[1:])
    ((_, pictures),) = generate(generator, rows, [0], seed=0, images=2, batch=8)
    assert pictures.shape == (2, 32, 32, 3)


def test_the_profiles_prompt_limit_takes_the_same_rows_as_the_loader(tiny_profile, rows):
    config = load(tiny_profile())
    assert config.prompts.per_task == 1
    assert len(rows) == len({row["tag"] for row in load_prompts(config.prompts_path("test"))})


def test_an_unknown_folder_is_no_generator(tmp_path):
    with pytest.raises(UserError, match="expected a pipeline in diffusers' layout"):
        Generator.load(tmp_path / "nothing", nfe=1)
