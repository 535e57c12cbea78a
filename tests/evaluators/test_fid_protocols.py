"""FID by the published protocols: the features are those of the published codes, references are held to what they are for, and the
command says what it lacks before any work. Inception here has random weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apex.data.prompts import load_prompts
from apex.errors import UserError, run_command
from evaluators.fid import __main__ as command
from evaluators.fid import mjhq, published, reference
from evaluators.fid.distance import Gaussian, moments
from evaluators.fid.inception import Feed, Network, build, file_features, load_network
from evaluators.fid.reference import Reference, listed, make, read, write
from evaluators.result import read_record

CATEGORIES = ("animals", "food")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception with random weights under the published file's names of keys; scaled so that features differ between images."""
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def network(weights: Path) -> Network:
    return load_network(weights)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five pictures of noise and slopes, of two sizes."""
    folder, rng, paths = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0), []
    for index, (width, height) in enumerate([(64, 48), (96, 96), (64, 48), (96, 96), (64, 48)]):
        slope = np.linspace(0, 200, width)[None, :, None] * rng.random(3)
        picture = np.clip(slope + rng.integers(0, 55, (height, width, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(picture).save(paths[-1])
    return paths


def plain(images: torch.Tensor) -> torch.Tensor:
    """A stand-in of Inception where the law is not about it: colours of nine fields, (B, 27)."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)


STAND_IN = Network(plain, "0" * 64)


def mjhq_folder(folder: Path, per: int = 8, side: int = 32) -> Path:
    """A small MJHQ-30K: meta_data.json and CATEGORY/ID.jpg."""
    rng, rows = np.random.default_rng(1), {}
    for index in range(per * len(CATEGORIES)):
        category, name = CATEGORIES[index % len(CATEGORIES)], f"{index:04x}"
        rows[name] = {"category": category, "prompt": f"{category} number {index}, “painted”"}
        path = folder / "mjhq30k_imgs" / category / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path, quality=95)
    (folder / mjhq.META).write_text(json.dumps(rows))
    return folder


# --------------------------------------------------------------------------------------------- the published codes


def test_pytorch_fids_own_network_and_reader_give_the_same_features(network: Network, photographs: list[Path], tmp_path: Path) -> None:
    """Its InceptionV3 runs the same blocks and resizes itself; pictures of one size, as it needs them in a batch."""
    from pytorch_fid import fid_score, inception

    net = build()
    net.load_state_dict({k: v for k, v in network.net.state_dict().items() if not k.startswith("fc.")}, strict=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "fid_inception_v3", lambda: net)
        theirs_net = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    alike = [path for path in photographs if Image.open(path).size == (64, 48)]
    theirs = fid_score.get_activations([str(p) for p in alike], theirs_net, batch_size=2, dims=2048, device="cpu", num_workers=0)
    ours = file_features(alike, Feed("pytorch-fid"), network, tmp_path).values
    assert ours.std() > 1e-3, "the weights tell the pictures apart"
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_clean_fids_own_reader_gives_the_same_features(network: Network, photographs: list[Path], tmp_path: Path) -> None:
    from cleanfid.fid import get_files_features

    theirs = get_files_features(
        [str(p) for p in photographs], lambda x: network.net((x - 128) / 128), num_workers=0, device=torch.device("cpu"), verbose=False
    )
    ours = file_features(photographs, Feed("clean-fid"), network, tmp_path).values
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_the_two_protocols_differ_and_the_batch_does_not_matter(network: Network, photographs: list[Path], tmp_path: Path) -> None:
    one = {n: file_features(photographs, Feed("clean-fid"), network, tmp_path / str(n), batch=n).values for n in (1, 4)}
    assert np.allclose(one[1], one[4], rtol=1e-4, atol=1e-5 * np.abs(one[1]).max())
    other = file_features(photographs, Feed("pytorch-fid"), network, tmp_path / "other").values
    assert np.abs(other - one[1]).max() > 1e-2 * np.abs(one[1]).max()


@pytest.mark.parametrize("rank", [6, 40])
def test_the_eigenvalue_form_is_clean_fids_to_a_millionth(rank: int) -> None:
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(rank)
    one, other = (rng.standard_normal((rank * 8, rank)) @ rng.standard_normal((rank, rank)) + shift for shift in (0.0, 0.4))
    theirs = frechet_distance(*moments(one), *moments(other))
    assert Gaussian(*moments(other)).distance(*moments(one)) == pytest.approx(theirs, rel=1e-6)


def test_sanas_crop_leaves_images_of_that_size_alone(photographs: list[Path]) -> None:
    square = photographs[1].read_bytes()
    assert torch.equal(Feed("pytorch-fid", 96)(square), Feed("pytorch-fid")(square))
    assert not torch.equal(Feed("pytorch-fid", 48)(square), Feed("pytorch-fid")(square))


# --------------------------------------------------------------------------------------------- what is kept


def test_what_was_kept_is_not_computed_again_and_is_known_by_content(photographs: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("evaluators.fid.inception.CHUNK", 2)
    calls: list[int] = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return plain(images)

    feed, net = Feed("clean-fid"), Network(counting, "0" * 64)
    whole = file_features(photographs, feed, net, tmp_path / "whole").values
    part = file_features(photographs[:2], feed, net, tmp_path / "kept")
    calls.clear()
    again = file_features(photographs, feed, net, tmp_path / "kept")
    assert sum(calls) == 3 and np.array_equal(again.values, whole) and part.files != again.files
    calls.clear()
    file_features(photographs, feed, Network(counting, "1" * 64), tmp_path / "kept")
    assert sum(calls) == 5, "other weights"
    damaged = next((tmp_path / "kept").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"abc")
    with pytest.raises(UserError, match=r"not the features that were kept there"):
        file_features(photographs, feed, net, tmp_path / "kept")
        file_features(photographs, feed, Network(counting, "1" * 64), tmp_path / "kept")


def test_a_reference_comes_back_and_is_held_to_what_it_is_for(tmp_path: Path) -> None:
    folder, feed = mjhq_folder(tmp_path / "mjhq"), Feed("pytorch-fid", 32)
    made = make(folder, feed, STAND_IN, tmp_path / "kept", limit=None, batch=4, threads=1)
    write(made, tmp_path / "r.safetensors")
    found = read(tmp_path / "r.safetensors", feed, STAND_IN.sha256)
    assert np.array_equal(found.features, made.features) and found.identity == made.identity
    assert np.allclose(found.gaussian.covariance, np.cov(made.features.astype(float), rowvar=False))
    assert {name: len(part) for name, part in found.parts.items()} == dict.fromkeys(CATEGORIES, 8)
    for other, sha, said in (
        (Feed("pytorch-fid", 16), STAND_IN.sha256, "resolution is 32, this call's is 16"),
        (Feed("clean-fid"), STAND_IN.sha256, "protocol is 'pytorch-fid', this call's is 'clean-fid'"),
        (feed, "1" * 64, "weights is"),
    ):
        with pytest.raises(UserError, match=said):
            read(tmp_path / "r.safetensors", other, sha)
    content = bytearray((tmp_path / "r.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="its checksum is another"):
        read(tmp_path / "bad.safetensors", feed, STAND_IN.sha256)


def test_a_published_npz_gives_fid_and_no_kid(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 5))
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    found = read(tmp_path / "theirs.npz", Feed("pytorch-fid"), "0" * 64)
    assert found.features is None and found.parts == {} and np.allclose(found.gaussian.mean, x.mean(0))
    np.savez(tmp_path / "wrong.npz", mu=x.mean(0), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"expected \(d,\) and \(d, d\)"):
        read(tmp_path / "wrong.npz", Feed("pytorch-fid"), "0" * 64)


# --------------------------------------------------------------------------------------------- MJHQ-30K


def test_the_prompt_file_has_the_categories_and_the_order(tmp_path: Path) -> None:
    folder = mjhq_folder(tmp_path / "mjhq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mjhq"])
        assert run_command(lambda: mjhq.main(["prompts", "--meta", str(folder / mjhq.META), "--out", str(tmp_path / "p.jsonl")])) == 0
    rows = load_prompts(tmp_path / "p.jsonl")
    assert [row["tag"] for row in rows[:3]] == ["animals", "food", "animals"] and rows[1]["prompt"].startswith("food number 1, “painted”")
    assert [path.stem for path in listed(folder).paths] == [row["id"] for row in rows]


@pytest.mark.parametrize("name", ["../out.jpg", "/abs.jpg", "a/../../out.jpg"])
def test_an_archive_that_leads_out_of_its_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("animals/0.jpg", b"fine")
        archive.writestr(name, b"not fine")
    with pytest.raises(UserError, match=r"leads out of the folder; nothing was unpacked"):
        mjhq.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.jpg").exists()


def test_missing_images_of_the_reference_are_named_and_counted(tmp_path: Path) -> None:
    folder = mjhq_folder(tmp_path / "mjhq")
    gone = listed(folder).paths[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=rf"2 of 16 images of meta_data.json are not there: .*{gone[0].name}"):
        listed(folder)


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Images in GenEval's layout for the prompts of a small MJHQ-30K."""
    rng = np.random.default_rng(3)
    for index in range(8):
        folder = tmp_path / "images" / f"{index:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps({"prompt": f"p {index}", "tag": CATEGORIES[index % 2]}) + "\n")
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "samples" / "0000.png")
    return tmp_path / "images"


def test_one_command_from_a_folder_to_a_record(generated: Path, weights: Path, tmp_path: Path, capsys) -> None:
    about = ["--weights", str(weights), "--protocol", "pytorch-fid", "--resolution", "32"]
    assert run_command(
        lambda: reference.main(["--images", str(mjhq_folder(tmp_path / "m", 4)), *about, "--out", str(tmp_path / "r.safetensors")])
    ) in (None, 0)
    line = ["--images", str(generated), "--reference", str(tmp_path / "r.safetensors"), "--row", "mine", "--nfe", "1", *about]
    command.main([*line, "--out", str(tmp_path / "fid.json")])
    record = read_record(tmp_path / "fid.json")
    names = {metric.metric for metric in record.metrics}
    assert {"fid", "fid/floor", "kid", "fid/category/animals", "kid/category/food"} <= names
    told = record.details
    assert (told["protocol"], told["resolution"], told["images_and_reference"]["all"], told["features"]) == (
        "pytorch-fid",
        32,
        [8, 8],
        2048,
    )
    assert "all" in told["covariance_not_of_full_rank"] and len(told["weights_sha256"]) == 64
    fid = next(m for m in record.metrics if m.metric == "fid")
    assert fid.ci_low <= fid.value <= fid.ci_high and fid.n == 8
    capsys.readouterr()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "--reference: missing"),
        (["--reference", "nowhere.npz"], "--reference nowhere.npz: not found"),
        (["--reference", "."], "FID's Inception-v3"),
    ],
)
def test_what_is_missing_is_said_before_any_image_is_read(tmp_path: Path, monkeypatch, extra: list[str], said: str) -> None:
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "none"))
    line = ["--protocol", "clean-fid", "--images", str(tmp_path / "no images either"), "--out", str(tmp_path / "fid.json"), *extra]
    with pytest.raises(UserError, match=said):
        command.main(line)


def test_floor_categories_and_identity_reach_the_record(generated: Path) -> None:
    from evaluators.images import open_images

    images = open_images(generated, row="mine", nfe=1)
    rng = np.random.default_rng(0)
    real = rng.standard_normal((60, 4)).astype(np.float32)
    given = Reference(Gaussian(*moments(real)), {"n": 60}, real, np.array(CATEGORIES * 30))
    found, details = published.score(rng.standard_normal((8, 4)).astype(np.float32) + 1, images, given, 0)
    values = {m.metric: m.value for m in found}
    assert values["fid"] > values["fid/floor"] and values["kid"] > 0
    assert details["images_and_reference"] == {"all": [8, 60], "animals": [4, 30], "food": [4, 30]}
    assert details["covariance_not_of_full_rank"] == ["animals", "food"]
