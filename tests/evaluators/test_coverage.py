"""Coverage: its formulas against closed forms and slow transcriptions, and what collapsed generators get."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apex.errors import UserError
from evaluators import coverage
from evaluators.command import fresh_renders
from evaluators.coverage import inside_manifold, manifold_metrics, measure, of_renders, scatter, spread, spread_metrics
from evaluators.geneval.logic import Detection
from evaluators.result import read_record

ONE = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
RED = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
THREE = {"tag": "counting", "include": [{"class": "circle", "count": 3}]}


def detection(x0: int, y0: int, x1: int, y1: int, side: int = 20, score: float = 0.99) -> Detection:
    mask = np.zeros((side, side), bool)
    mask[y0:y1, x0:x1] = True
    return Detection((x0, y0, x1, y1), score, mask)


def picture(objects: list[Detection], rgb: tuple[int, int, int] = (255, 0, 51), ground: int = 102) -> np.ndarray:
    image = np.full((20, 20, 3), ground, np.uint8)
    for d in objects:
        image[d.mask] = rgb
    return image


def test_measures_by_hand():
    objects = [detection(2, 4, 6, 12)]
    found = measure(picture(objects), {"circle": objects}, ONE)
    assert found["size"] == pytest.approx(np.sqrt(4 * 8) / 20 / 2)
    assert found["place"].tolist() == pytest.approx([4 / 20, 8 / 20])
    assert found["color"].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert found["background"] == pytest.approx(0.4)
    assert "color" not in measure(picture(objects), {"circle": objects}, RED), "the prompt names it: it is not open"


def test_objects_of_a_class_are_one_slot():
    objects = [detection(0, 0, 4, 4), detection(8, 0, 12, 4), detection(16, 6, 20, 10)]
    found = measure(picture(objects), {"circle": objects}, THREE)
    assert found["place"].tolist() == pytest.approx([np.mean([2, 10, 18]) / 20, np.mean([2, 2, 8]) / 20])
    assert found["size"] == pytest.approx([0.1])


def test_what_is_not_found_is_not_measured():
    objects = [detection(2, 4, 6, 12)]
    assert measure(picture(objects), {"circle": objects}, THREE) == {
        "size": None,
        "place": None,
        "color": None,
        "background": pytest.approx(0.4),
    }
    assert measure(picture(objects), {"circle": objects}, RED)["size"] is not None
    assert measure(picture([]), {}, RED)["size"] is None


def test_scatter_is_the_unbiased_variance_over_the_measured_images():
    values = [{"place": np.array([0.0, 1.0])}, {"place": None}, {"place": np.array([2.0, 5.0])}, {}]
    assert scatter(values, "place") == (pytest.approx(2.0 + 8.0), 2)
    assert scatter(values[:2], "place") == (0.0, 1)


def test_spread_is_the_pooled_ratio_whatever_the_number_of_images():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 5, 4000)
    ours = np.array([np.var(0.5 * rng.standard_normal(n), ddof=1) for n in counts])
    real = np.array([np.var(rng.standard_normal(8), ddof=1) for _ in counts])
    assert spread(ours, counts, real)[0] == pytest.approx(0.5, rel=0.03)
    assert spread(np.array([1.0, 9.0]), np.array([2, 2]), np.array([1.0, 1.0]), np.eye(2)) == pytest.approx([1.0, 3.0])
    assert spread(np.array([7.0]), np.array([1]), np.array([1.0]))[0] == 0.0, "one image shows no spread"


def test_spread_does_not_let_one_attribute_pay_for_another():
    rng = np.random.default_rng(0)

    def drawn(size: float, place: float, images: int) -> list[list[dict]]:
        return [
            [
                {"size": size * rng.standard_normal(1), "place": place * rng.standard_normal(2), "background": rng.standard_normal(1)}
                for _ in range(images)
            ]
            for _ in range(300)
        ]

    real, weights = drawn(1.0, 1.0, 8), np.ones((3, 300))
    found = {m.metric: m.value for m in spread_metrics(drawn(0.0, 2.0, 4), of_renders(real), weights)[0]}
    assert found["coverage/size"] == 0.0 and found["coverage/place"] == pytest.approx(2.0, rel=0.1)
    assert found["coverage/spread"] == pytest.approx(2 / 3, abs=0.05)
    assert "coverage/color" not in found, "no prompt leaves it open"


def test_what_is_hardly_ever_found_counts_as_nothing():
    real = [[{"size": np.array([float(i + p)])} for i in range(8)] for p in range(40)]
    rare = [[{"size": np.array([9.0 * i]) if p < 3 else None} for i in range(4)] for p in range(40)]
    found, shares = spread_metrics(rare, of_renders(real), np.ones((2, 40)))
    assert shares["size"] == pytest.approx(3 / 40)
    assert {m.metric: m.value for m in found}["coverage/size"] == 0.0


def slow_inside(points: np.ndarray, manifold: np.ndarray, k: int) -> list[bool]:
    found = []
    for point in points:
        inside = False
        for i, member in enumerate(manifold):
            others = sorted(float(np.linalg.norm(member - other)) for j, other in enumerate(manifold) if j != i)
            inside = inside or float(np.linalg.norm(point - member)) <= others[k - 1]
        found.append(inside)
    return found


def test_manifold_membership_is_the_definition():
    rng = np.random.default_rng(0)
    points, manifold = 1.5 * rng.standard_normal((60, 3)), rng.standard_normal((40, 3))
    for k in (1, 3):
        ours = inside_manifold(points, manifold, k).tolist()
        assert ours == slow_inside(points, manifold, k)
        assert 5 < sum(ours) < 55


def test_precision_and_recall_tell_collapse_from_nonsense():
    rng, prompts, weights = np.random.default_rng(0), np.repeat(np.arange(50), 4), np.ones((2, 50))
    real = rng.standard_normal((200, 4))

    def both(generated: np.ndarray) -> list[float]:
        return [m.value for m in manifold_metrics(generated, real, prompts, weights)]

    same, collapsed, far = both(rng.standard_normal((200, 4))), both(0.05 * rng.standard_normal((200, 4))), both(real + 50)
    assert min(same) > 0.8
    assert collapsed[0] > 0.95 and collapsed[1] < 0.2
    assert far == [0.0, 0.0]


@pytest.fixture(scope="module")
def half(test_rows) -> list[dict]:
    return test_rows[::4]


def run(folder, tmp_path, *more: str) -> dict[str, float]:
    coverage.main(["--images", str(folder), "--out", str(tmp_path / "coverage.json"), "--device", "cpu", *more])
    return {m.metric: m.value for m in read_record(tmp_path / "coverage.json").metrics}


def test_renders_cover_copies_and_noise_do_not(make_folder, half, tmp_path):
    renders = fresh_renders(half, [4] * len(half), 32, seed=5)
    real = run(make_folder(half, renders, name="real"), tmp_path)
    for name in ("spread", "size", "place", "background", "color"):
        assert real[f"coverage/{name}"] == pytest.approx(1, abs=0.12), name
    assert real["coverage/precision"] > 0.8 and real["coverage/recall"] > 0.8

    copies = run(make_folder(half, np.repeat(renders[::4], 4, axis=0), name="copies"), tmp_path)
    assert copies["coverage/spread"] == 0 and copies["coverage/precision"] > 0.8
    assert copies["coverage/recall"] < real["coverage/recall"] - 0.1

    noise = np.random.default_rng(0).integers(0, 256, renders.shape, dtype=np.uint8)
    nothing = run(make_folder(half, noise, name="noise"), tmp_path)
    assert nothing["coverage/spread"] < 0.1 and nothing["coverage/precision"] == 0 and nothing["coverage/recall"] == 0


def test_one_image_a_prompt_is_refused(make_folder, few_rows, tmp_path):
    with pytest.raises(UserError, match="coverage needs at least 2"):
        run(make_folder(few_rows, per_prompt=1), tmp_path)


def test_more_images_than_renders_a_prompt(make_folder, few_rows, tmp_path):
    many = coverage.RENDERS + 2
    folder = make_folder(few_rows[:6], per_prompt=many, made=False)
    run(folder, tmp_path, "--row", "theirs", "--nfe", "4", "--incomplete")
    about = json.loads((tmp_path / "coverage.json").read_text())
    assert (about["row"], about["nfe"], about["details"]["images_per_prompt"]) == ("theirs", 4, [many])
