"""CLIP score: its arithmetic, its shuffled pairs, and that it tells right prompts from wrong ones."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apex.data.world import SHAPES
from apex.errors import UserError
from evaluators.clip_score import cosines, derangement, metric, references, score
from evaluators.command import fresh_renders, prompt_weights
from evaluators.images import open_images
from evaluators.references import Renders


def test_cosines_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert cosines(images, texts).tolist() == pytest.approx([0.0, 100.0], abs=1e-5)


def test_the_mean_is_over_images_and_its_interval_over_prompts():
    values, prompts = np.array([10.0, 20.0, 40.0, 50.0]), np.array([0, 0, 1, 1])
    found = metric("clip_score", values, prompts, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    assert (found.value, found.n) == (30.0, 4)
    assert 15.0 <= found.ci_low < 17 and 43 < found.ci_high <= 45.0


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40))
def test_shuffled_prompts_are_each_used_once_and_never_ones_own(texts):
    if 2 * max(map(texts.count, texts)) > len(texts):
        with pytest.raises(UserError, match="say the same"):
            derangement(texts)
        return
    partner = derangement(texts)
    assert sorted(partner) == list(range(len(texts)))
    assert all(texts[i] != texts[j] for i, j in enumerate(partner))


def test_right_prompts_score_above_wrong_ones(make_folder, few_rows, clip):
    images = open_images(make_folder(few_rows))
    renders = references(Renders(images.rows, [len(f) for f in images.files], 32, 0), "cpu", clip=clip)[1]()["renders"]
    found = {m.metric: m for m in score(images, clip, prompt_weights(images, 0), torch.from_numpy(renders))}
    right, real, shuffled = (found[f"clip_score{name}"] for name in ("", "/real", "/shuffled"))
    assert right.ci_low > shuffled.ci_high and real.ci_low > shuffled.ci_high
    assert right.value == pytest.approx(real.value, abs=3), "both are renders"
    assert {m.n for m in found.values()} == {len(images)}


@pytest.mark.parametrize(
    ("tag", "include", "said", "unsaid"),
    [
        (
            "color_attr",
            [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}],
            "a red circle and a blue square",
            "a blue circle and a red square",
        ),
        ("counting", [{"class": "circle", "count": 3}], "three circles", "two circles"),
    ],
)
def test_order_and_number_of_words_matter(tag, include, said, unsaid, clip):
    renders = fresh_renders([{"tag": tag, "include": include}], [40], 32, seed=0)
    right, wrong = (clip.encode_images([Image.fromarray(r) for r in renders]) @ clip.encode_texts([said, unsaid]).T).T
    assert (right > wrong).float().mean() > 0.75


@pytest.mark.parametrize(("relation", "other"), [("above", "left of"), ("right of", "below")])
def test_the_axis_of_a_place_matters(relation, other, clip):
    """Which of two objects is the upper one it does not tell, as CLIP at full scale does not: GenEval judges places."""
    rows = [
        {"tag": "position", "include": [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]}
        for a, b in permutations(SHAPES, 2)
    ]
    renders = fresh_renders(rows, [2] * len(rows), 32, seed=0)
    said, unsaid = ([f"a {a} {word} a {b}" for a, b in permutations(SHAPES, 2) for _ in range(2)] for word in (relation, other))
    seen = clip.encode_images([Image.fromarray(r) for r in renders])
    right, wrong = ((seen * clip.encode_texts(texts)).sum(1) for texts in (said, unsaid))
    assert (right > wrong).float().mean() > 0.75


def test_the_batch_does_not_matter(few_rows, clip):
    pictures = [Image.fromarray(r) for r in fresh_renders(few_rows, [1] * len(few_rows), 32, seed=0)]
    together = clip.encode_images(pictures)
    assert torch.allclose(torch.cat([clip.encode_images([p]) for p in pictures]), together, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(pictures)), atol=1e-5)
