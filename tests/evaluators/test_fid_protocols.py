"""FID's Inception as the published codes feed it, against these codes on the same random weights; and the commands around it.

Inception takes a third of a second an image, so few images go through it; the commands are tested with a small network in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cleanfid.fid
import cleanfid.inception_torchscript
import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
from PIL import Image
from torch import nn

from apex.data.prompts import write_layout
from apex.errors import UserError, run_command
from evaluators.fid import __main__ as command
from evaluators.fid import inception, published, reference
from evaluators.fid.distance import Gaussian, kid, moments
from evaluators.fid.inception import Feed, Network, build, file_features, load_network
from evaluators.result import read_record

# ---------------------------------------------------------------------------------- Inception itself


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """pytorch-fid's file with random weights. The default ones let the signal die out: scaled by 6^1/2 they are He's, which keep it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save({name: 6**0.5 * v if name.endswith("conv.weight") else v for name, v in build().state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> Network:
    return load_network(weights)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Three images of one size, one of them JPEG."""
    rng, paths = np.random.default_rng(0), []
    for index, suffix in enumerate(("png", "png", "jpg")):
        small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
        paths.append(tmp_path / f"{index}.{suffix}")
        small.resize((360, 330), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def test_the_pytorch_fid_path_is_pytorch_fids(files, weights, network, tmp_path, monkeypatch):
    """Its own network, reading and statistics; only the download is replaced, by the same weights."""
    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    model = pytorch_fid.inception.InceptionV3([pytorch_fid.inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    theirs = pytorch_fid.fid_score.get_activations([str(p) for p in files], model, batch_size=3, num_workers=0)
    ours = file_features(files, Feed("pytorch-fid"), network, tmp_path / "kept", batch=2).values
    assert ours.shape == (3, 2048) and ours.std(0).mean() > 0.01
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_the_clean_fid_path_is_clean_fids(files, network, tmp_path, monkeypatch):
    """Its own reading and resize, and its own wrapper of the network, around a TorchScript archive of the same layers."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.jit.trace(network.net, torch.zeros(1, 3, 299, 299))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.jit.script(Layers()).save(str(tmp_path / "inception-2015-12-05.pt"))
    model = cleanfid.inception_torchscript.InceptionV3W(str(tmp_path), download=False)
    theirs = cleanfid.fid.get_files_features(
        [str(p) for p in files], model, num_workers=0, batch_size=3, device=torch.device("cpu"), mode="clean", verbose=False
    )
    ours = file_features(files, Feed("clean-fid"), network, tmp_path / "kept", batch=2).values
    assert ours.std(0).mean() > 0.01
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_wrong_weights_are_one_clear_line(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    name, noise, bare = tmp_path / "w.pth", tmp_path / "noise.pth", tmp_path / "list.pth"
    torch.save({k: v for k, v in state.items() if k != "fc.weight"}, name)
    bias, spoiled = "Mixed_7c.branch1x1.bn.bias", tmp_path / "nan.pth"
    torch.save(state | {bias: torch.full_like(state[bias], torch.nan)}, spoiled)
    noise.write_bytes(b"\xff" * 100)
    torch.save([1, 2], bare)
    for path, named in (
        (name, "fc.weight"),
        (spoiled, f"{spoiled}: {bias}: found values that are not finite"),
        (noise, "noise.pth"),
        (bare, "list.pth"),
    ):
        with pytest.raises(UserError, match="not FID's Inception") as error:
            load_network(path)
        assert named in str(error.value) and "pt_inception-2015-12-05-6726825d.pth" in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- resizes


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def fed(feed: Feed, image: Image.Image, path: Path) -> np.ndarray:
    image.save(path)
    return feed(path.read_bytes()).permute(1, 2, 0).numpy()


def test_pytorch_fids_resize_written_out(tmp_path):
    """Bilinear without antialiasing, samples at pixel centres: each value is a blend of the four pixels around its place."""
    image = picture(640, 512)
    pixels, place = np.asarray(image).astype(np.float64), lambda n: np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
    ys, xs = place(512), place(640)
    top, left = np.floor(ys).astype(int), np.floor(xs).astype(int)
    down, right = np.minimum(top + 1, 511), np.minimum(left + 1, 639)
    wy, wx = (ys - top)[:, None, None], (xs - left)[None, :, None]
    rows = [pixels[y][:, left] * (1 - wx) + pixels[y][:, right] * wx for y in (top, down)]
    expected = 2 * (rows[0] * (1 - wy) + rows[1] * wy) / 255 - 1
    assert np.allclose(fed(Feed("pytorch-fid"), image, tmp_path / "x.png"), expected, atol=1e-3)


def test_clean_fids_resize_written_out(tmp_path):
    image = picture(400, 350)
    channels = [
        Image.fromarray(np.asarray(image)[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)
    ]
    expected = (np.stack([np.asarray(c) for c in channels], -1).clip(0, 255) - 128) / 128
    found = fed(Feed("clean-fid"), image, tmp_path / "x.png")
    assert np.allclose(found, expected, atol=1e-5)
    assert np.abs(expected * 128 - np.round(expected * 128)).max() > 0.1, "values are not rounded"


def test_a_resolution_resizes_and_crops_as_sanas_code_and_leaves_images_of_it(tmp_path):
    image = picture(600, 400)
    small = image.resize((450, 300), Image.Resampling.BILINEAR).crop((75, 0, 375, 300))
    at_300, plain = Feed("pytorch-fid", 300), Feed("pytorch-fid")
    assert np.array_equal(fed(at_300, image, tmp_path / "a.png"), fed(plain, small, tmp_path / "b.png"))
    assert np.array_equal(fed(at_300, small, tmp_path / "c.png"), fed(plain, small, tmp_path / "d.png"))


def test_the_two_protocols_and_resolutions_differ(tmp_path):
    image = picture(512, 512)
    seen = [fed(f, image, tmp_path / "x.png") for f in (Feed("pytorch-fid"), Feed("pytorch-fid", 256), Feed("clean-fid"))]
    assert all(np.abs(a - b).mean() > 0.05 for i, a in enumerate(seen) for b in seen[:i])


def test_jpeg_compresses_first_and_images_of_other_modes_are_rgb(tmp_path):
    image = picture(64, 64)
    image.save(tmp_path / "x.jpg", quality=75)
    squeezed = Image.open(tmp_path / "x.jpg")
    assert np.array_equal(
        fed(Feed("pytorch-fid", jpeg=75), image, tmp_path / "a.png"), fed(Feed("pytorch-fid"), squeezed, tmp_path / "b.png")
    )
    gray = image.convert("L")
    assert np.array_equal(fed(Feed("clean-fid"), gray, tmp_path / "c.png"), fed(Feed("clean-fid"), gray.convert("RGB"), tmp_path / "d.png"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("clean-fid", 512), "clean-fid resizes each image"),
        (("pytorch-fid", 0), "--resolution 0"),
        (("pytorch-fid", None, 101), "--jpeg 101"),
        (("legacy",), "--protocol legacy"),
    ],
)
def test_a_feed_that_is_none_is_refused(given, named):
    with pytest.raises(UserError, match=named):
        Feed(*given)


# ---------------------------------------------------------------------------------- the commands, with a small network


class Small(nn.Module):
    """Six features of an image: mean and deviation of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


class Counting(Network):
    seen = 0

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        type(self).seen += len(images)
        return super().__call__(images)


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A file of weights that loads as the small network, in both commands; how many images it has seen is Counting.seen."""
    path = tmp_path / "inception.pth"
    path.write_bytes(b"weights")
    for module in (published, inception):
        monkeypatch.setattr(module, "load_network", lambda path, device: Counting(Small(), "ab" * 32, device))
    Counting.seen = 0
    return path


def scenes(count: int, seed: int, shift: float = 0, side: int = 24) -> np.ndarray:
    """Images of random colour and contrast, uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    centre, spread = rng.uniform(60, 180, (count, 1, 1, 3)) + shift, rng.uniform(5, 40, (count, 1, 1, 3))
    return (centre + spread * rng.standard_normal((count, side, side, 3))).clip(0, 255).astype(np.uint8)


ROWS = [{"prompt": f"picture {i}", "tag": "animals" if i % 2 else "people", "id": f"x{i}"} for i in range(40)]


def mjhq(folder: Path, pixels: np.ndarray, root: str = "mjhq30k_imgs") -> Path:
    meta = {f"id{i}": {"category": "animals" if i % 2 else "people", "prompt": f"picture {i}"} for i in range(len(pixels))}
    for (name, row), image in zip(meta.items(), pixels, strict=True):
        path = folder / root / row["category"] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def generated(make_folder) -> Path:
    return make_folder(ROWS, scenes(40, 1, shift=10), per_prompt=1, made=False, name="generated")


@pytest.fixture
def score(small, generated, tmp_path) -> Callable[..., int]:
    def run(*arguments: object, out: str = "fid.json", protocol: str = "pytorch-fid") -> int:
        given = ["--protocol", protocol, "--weights", small, "--images", generated, "--out", tmp_path / out, "--device", "cpu"]
        return run_command(lambda: command.main([str(a) for a in (*given, "--row", "mine", "--nfe", 1, *arguments)]))

    return run


def make_reference(*arguments: object) -> int:
    return run_command(lambda: reference.main([str(a) for a in (*arguments, "--device", "cpu")]))


@pytest.fixture
def real(small, tmp_path) -> Path:
    folder, out = mjhq(tmp_path / "mjhq", scenes(60, 2, side=48)), tmp_path / "real.safetensors"
    assert make_reference("--images", folder, "--protocol", "pytorch-fid", "--resolution", 24, "--weights", small, "--out", out) == 0
    return out


def test_a_folder_against_kept_statistics(score, generated, real, small, tmp_path):
    assert score("--reference", real) == 0
    record = read_record(tmp_path / "fid.json")
    network, feed = Network(Small(), "ab" * 32), Feed("pytorch-fid", 24)
    x = file_features(sorted(generated.rglob("*.png")), feed, network, tmp_path / "k").values
    names = [f"id{i}" for i in range(60)]
    y = file_features([next((tmp_path / "mjhq").rglob(f"{n}.jpg")) for n in names], feed, network, tmp_path / "k").values
    assert record.value("fid") == pytest.approx(cleanfid.fid.fid_from_feats(x.astype(float), y.astype(float)), rel=1e-5)
    assert record.value("kid") == pytest.approx(kid(x, y, np.arange(40), [""] * 40)[0])
    odd = np.arange(40) % 2 == 1
    expected = Gaussian(*moments(y[1::2])).distance(*moments(x[odd]))
    assert record.value("fid/category/animals") == pytest.approx(expected)
    found = {m.metric: m for m in record.metrics}
    assert set(found) == {"fid", "fid/floor", "fid/infinity", "kid"} | {f"{k}id/category/{c}" for k in "fk" for c in ("animals", "people")}
    assert found["fid/floor"].n == 30 and found["fid/category/people"].n == 20
    assert found["fid"].interval == "delta method 95%" and found["kid"].interval == "jackknife 95%"
    details = record.details
    assert (details["protocol"], details["resolution"], details["jpeg"], details["features"]) == ("pytorch-fid", 24, None, 6)
    assert details["reference"]["n"] == 60 and details["images_and_reference"]["animals"] == [20, 30]
    assert details["weights_sha256"] == "ab" * 32 and details["code"] == "pytorch-fid 0.3.0"
    assert len(details["fid_at_n"]["n"]) == 15 and details["covariance_not_of_full_rank"] == []
    assert Image.open(tmp_path / details["picture"]).format == "PNG"


def test_a_folder_of_real_images_is_as_good_as_its_statistics(score, real, tmp_path):
    assert score("--reference", real, out="a.json") == 0 and score("--reference", tmp_path / "mjhq", out="b.json") == 0
    a, b = (read_record(tmp_path / name) for name in ("a.json", "b.json"))
    assert a.metrics == b.metrics and a.details["reference"] == b.details["reference"]


def test_a_published_npz_gives_fid_alone(score, real, tmp_path):
    stored = reference.read(real, Feed("pytorch-fid", 24), "ab" * 32).gaussian
    np.savez(tmp_path / "real.npz", mu=stored.mean, sigma=stored.covariance)
    assert score("--reference", real) == 0 and score("--reference", tmp_path / "real.npz", out="npz.json") == 0
    npz = read_record(tmp_path / "npz.json")
    assert {m.metric for m in npz.metrics} == {"fid", "fid/infinity"}
    assert npz.value("fid") == pytest.approx(read_record(tmp_path / "fid.json").value("fid"))
    assert "neither" in npz.details["reference"]["states"]


def test_clean_fid_takes_any_size(score, tmp_path):
    for index, side in enumerate((20, 40, 64, 33)):
        picture(side, 2 * side, index).save(tmp_path / f"{index}.png")
    (tmp_path / "any").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "any" / file.name)
    assert score("--reference", tmp_path / "any", protocol="clean-fid") == 0
    record = read_record(tmp_path / "fid.json")
    assert record.details["resolution"] is None and record.details["covariance_not_of_full_rank"] == ["all"]
    assert {m.metric for m in record.metrics} == {"fid", "fid/infinity", "fid/floor", "kid"}


def test_the_batch_does_not_matter_and_a_rerun_computes_nothing(score, real, tmp_path):
    assert score("--reference", real, "--batch", 40, out="a.json") == 0
    before = Counting.seen
    assert score("--reference", real, "--batch", 7, out="b.json") == 0
    assert Counting.seen == before + 40, "another record keeps its features elsewhere"
    assert score("--reference", real, "--keep", tmp_path / "a.features", out="c.json") == 0
    assert Counting.seen == before + 40
    a, b, c = (read_record(tmp_path / f"{name}.json") for name in "abc")
    assert [m.value for m in a.metrics] == pytest.approx([m.value for m in b.metrics], rel=1e-4, abs=1e-9)
    assert a.metrics == c.metrics


def test_a_call_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.fid.inception.CHUNK", 4)
    paths = []
    for index in range(11):
        paths.append(tmp_path / f"{index:02d}.png")
        picture(20, 20, index).save(paths[-1])

    class Dying(Counting):
        def __call__(self, images: torch.Tensor) -> np.ndarray:
            if self.seen >= 8:
                raise KeyboardInterrupt
            return super().__call__(images)

    whole = file_features(paths, Feed("pytorch-fid"), Network(Small(), "x"), tmp_path / "other")
    Counting.seen = Dying.seen = 0
    with pytest.raises(KeyboardInterrupt):
        file_features(paths, Feed("pytorch-fid"), Dying(Small(), "x"), tmp_path / "kept", batch=2)
    resumed = file_features(paths, Feed("pytorch-fid"), Counting(Small(), "x"), tmp_path / "kept", batch=2)
    assert Counting.seen == 3 and np.allclose(resumed.values, whole.values, atol=1e-6) and resumed.files == whole.files
    # Another image, feed or network is another thing to keep.
    picture(20, 20, 99).save(paths[0])
    file_features(paths, Feed("pytorch-fid"), Counting(Small(), "x"), tmp_path / "kept")
    assert Counting.seen == 3 + 4
    for feed, weights in ((Feed("clean-fid"), "x"), (Feed("pytorch-fid"), "y")):
        seen = Counting.seen
        file_features(paths, feed, Counting(Small(), weights), tmp_path / "kept")
        assert Counting.seen == seen + 11


def test_kept_features_that_were_changed_are_named(tmp_path):
    picture(20, 20).save(tmp_path / "a.png")
    arguments = ([tmp_path / "a.png"], Feed("pytorch-fid"), Network(Small(), "x"), tmp_path / "kept")
    file_features(*arguments)
    (file,) = (tmp_path / "kept").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum") as error:
        file_features(*arguments)
    assert str(file) in str(error.value)


def test_a_limit_takes_the_first_of_meta_data(small, real, tmp_path):
    out = tmp_path / "few.safetensors"
    arguments = ("--images", tmp_path / "mjhq", "--protocol", "pytorch-fid", "--resolution", 24, "--weights", small, "--out", out)
    assert make_reference(*arguments, "--limit", 20) == 0
    few, every = (reference.read(p, Feed("pytorch-fid", 24), "ab" * 32) for p in (out, real))
    assert few.identity["n"] == 20 and np.array_equal(few.features, every.features[:20])
    assert np.allclose(few.gaussian.covariance, np.cov(few.features.astype(float), rowvar=False))
    assert {name: len(part) for name, part in few.parts.items()} == {"animals": 10, "people": 10}


def test_geneval_layout_is_a_reference_too(generated):
    found = reference.listed(generated)
    assert len(found.paths) == 40 and found.categories[:2] == ["people", "animals"]


def test_too_few_prompts_of_a_category_are_named(score, real, generated, tmp_path):
    (generated / "00001/metadata.jsonl").write_text(json.dumps({"prompt": "x", "category": "food"}))
    assert score("--reference", real) == 0
    record = read_record(tmp_path / "fid.json")
    assert record.details["categories_left_out"] == {"food": "1 prompts, 0 reference images: too few"}
    assert record.details["images_and_reference"]["animals"] == [19, 30]


# ---------------------------------------------------------------------------------- what can be wrong


def damage(real: Path, tmp_path: Path) -> list:
    content = bytearray(real.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    return ["--reference", tmp_path / "damaged.safetensors"]


def pickled(real: Path, tmp_path: Path) -> list:
    np.savez(tmp_path / "p.npz", mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(2))
    return ["--reference", tmp_path / "p.npz"]


def crooked(real: Path, tmp_path: Path) -> list:
    np.savez(tmp_path / "c.npz", mu=np.zeros(3), sigma=np.eye(2))
    return ["--reference", tmp_path / "c.npz"]


def narrow(real: Path, tmp_path: Path) -> list:
    np.savez(tmp_path / "n.npz", mu=np.zeros(2), sigma=np.eye(2))
    return ["--reference", tmp_path / "n.npz"]


def half_mjhq(real: Path, tmp_path: Path) -> list:
    for name in ("id3", "id5"):
        next((tmp_path / "mjhq").rglob(f"{name}.jpg")).unlink()
    return ["--reference", tmp_path / "mjhq"]


def corrupt(real: Path, tmp_path: Path) -> list:
    next((tmp_path / "mjhq").rglob("id3.jpg")).write_bytes(b"no image")
    return ["--reference", tmp_path / "mjhq"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda real, tmp_path: [], "--reference: missing"),
        (lambda real, tmp_path: ["--reference", tmp_path / "no.npz"], "no.npz: not found"),
        (lambda real, tmp_path: ["--reference", real, "--resolution", 16], "resolution is 24, this call's is 16"),
        (lambda real, tmp_path: ["--reference", tmp_path / "file"], "not a reference of"),
        (damage, "its checksum is another"),
        (pickled, "not statistics as pytorch-fid writes them"),
        (crooked, "found a mean of shape (3,) and a covariance of"),
        (narrow, "2 features; the network gives 6"),
        (half_mjhq, "2 of 60 images of meta_data.json are not there: mjhq30k_imgs/animals/id3.jpg"),
        (corrupt, "id3.jpg: found a file of no known format"),
        (lambda real, tmp_path: ["--reference", real, "--batch", 0], "--batch: found 0"),
    ],
)
def test_bad_references_are_one_clear_line(spoil, named, score, real, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = spoil(real, tmp_path)
    capsys.readouterr()
    code = score(*arguments, out="bad.json")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and named in lines[0] and not (tmp_path / "bad.json").exists()


def test_another_protocol_or_network_is_refused(score, real, small, tmp_path, capsys, monkeypatch):
    assert score("--reference", real, protocol="clean-fid") == 2
    assert "protocol is 'pytorch-fid', this call's is 'clean-fid'" in capsys.readouterr().err
    monkeypatch.setattr(published, "load_network", lambda path, device: Network(Small(), "cd" * 32))
    assert score("--reference", real) == 2
    assert "weights is 'abab" in capsys.readouterr().err


def test_the_worlds_protocol_takes_no_reference(tmp_path, capsys):
    given = ["--images", str(tmp_path), "--out", str(tmp_path / "o.json"), "--reference", str(tmp_path)]
    assert run_command(lambda: command.main(given)) == 2
    assert "--reference: the world's FID is against fresh renders" in capsys.readouterr().err


def test_missing_weights_are_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "assets"))
    given = ["--protocol", "clean-fid", "--images", "nowhere", "--out", str(tmp_path / "o.json"), "--reference", str(tmp_path)]
    assert run_command(lambda: command.main(given)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pt_inception-2015-12-05-6726825d.pth: not found" in error


def test_two_prompts_are_too_few(score, real, tmp_path, capsys):
    few = tmp_path / "few"
    for index, row in enumerate(ROWS[:2]):
        write_layout(few, index, row, list(scenes(2, index)))
    assert score("--reference", real, "--images", few) == 2
    assert "2 prompts; FID with its interval needs at least 3" in capsys.readouterr().err
