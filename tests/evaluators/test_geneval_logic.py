"""GenEval's verdicts: every rule and border by hand, and against a slow literal transcription of the protocol."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex.data import world
from apex.errors import UserError
from evaluators.geneval.logic import Detection, check_known, judge, keep, overall, relative_position

ONE_CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
TWO_CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}], "prompt": "two cats"}
RED_CAT = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}
CAT_LEFT = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
    "prompt": "a cat left of a dog",
}


def at(x: float, y: float, score: float = 0.95, half: float = 1.0) -> Detection:
    return Detection((x - half, y - half, x + half, y + half), score)


def no_color(objects, name):
    raise AssertionError("the colour classifier was asked without need")


def right(detections, row, classify=no_color) -> bool:
    return judge(detections, row, classify).correct


def test_threshold_is_strict_and_higher_for_counting():
    assert not right({"cat": [at(5, 5, 0.3)]}, ONE_CAT)
    assert right({"cat": [at(5, 5, 0.3001)]}, ONE_CAT)
    two = {"cat": [at(5, 5, 0.9), at(9, 9, 0.95)]}
    assert not right(two, TWO_CATS)
    assert right({"cat": [at(5, 5, 0.9001), at(9, 9, 0.95)]}, TWO_CATS)


def test_only_counting_punishes_extra_objects():
    many = {"cat": [at(5, 5), at(9, 9), at(1, 1)], "dog": [at(3, 3)]}
    assert right(many, ONE_CAT)
    assert not right(many, TWO_CATS)
    assert judge(many, TWO_CATS, no_color).reasons[0].kind == "extra"
    assert right({"cat": [at(5, 5), at(9, 9), at(1, 1, 0.89)]}, TWO_CATS), "a third below 0.9 does not count"


def test_at_most_sixteen_of_a_class_best_first():
    found = keep({"cat": [at(i, i, 0.31 + i / 100) for i in range(20)]}, "colors")["cat"]
    assert len(found) == 16
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert found[0].score == pytest.approx(0.50)
    sixteen_at_most = {"tag": "counting", "include": [{"class": "cat", "count": 16}], "exclude": [{"class": "cat", "count": 17}]}
    assert right({"cat": [at(i, i) for i in range(20)]}, sixteen_at_most)


def test_color_looks_at_the_best_object_alone():
    cats = {"cat": [at(5, 5, 0.8), at(9, 9, 0.9)]}
    assert right(cats, RED_CAT, lambda objects, name: ["red" if o.score == 0.9 else "blue" for o in objects])
    assert not right(cats, RED_CAT, lambda objects, name: ["red" if o.score == 0.8 else "blue" for o in objects])


def test_color_of_several_counts_the_right_ones():
    row = {"tag": "color_attr", "include": [{"class": "cat", "count": 2, "color": "red"}]}
    cats = {"cat": [at(5, 5), at(9, 9)]}
    assert right(cats, row, lambda objects, name: ["red"] * len(objects))
    assert not right(cats, row, lambda objects, name: ["red", "blue"])


def test_missing_object_is_not_asked_for_its_color():
    assert judge({}, RED_CAT, no_color).reasons[0].kind == "missing"


def test_position_uses_the_best_objects_and_the_reference_first():
    cat, dog = at(5, 10), at(15, 10)
    assert right({"cat": [cat], "dog": [dog]}, CAT_LEFT)
    assert not right({"cat": [dog], "dog": [cat]}, CAT_LEFT)
    assert right({"cat": [cat, at(25, 10, 0.9)], "dog": [dog]}, CAT_LEFT), "a weaker cat elsewhere does not matter"
    assert not right({"cat": [cat, at(25, 10, 0.99)], "dog": [dog]}, CAT_LEFT)


def test_position_without_its_reference_fails_once_for_each_reason():
    verdict = judge({"cat": [at(5, 10)]}, CAT_LEFT, no_color)
    assert [r.kind for r in verdict.reasons] == ["missing", "position"]


def test_position_rule_borders():
    # Two boxes of extent 2: the offset is shrunk by 0.1 * 4 = 0.4 along each axis.
    assert relative_position(at(0, 0).box, at(10, 0).box) == {"left of"}
    assert relative_position(at(10, 0).box, at(0, 0).box) == {"right of"}
    assert relative_position(at(0, 0).box, at(0, 10).box) == {"above"}
    assert relative_position(at(0, 10).box, at(0, 0).box) == {"below"}
    assert relative_position(at(0, 0).box, at(10, 10).box) == {"left of", "above"}
    assert relative_position(at(0, 0).box, at(0, 0).box) == set()
    assert relative_position(at(0, 0).box, at(0.4, 0.4).box) == set(), "nothing is left after shrinking"
    # dx / |offset| = (|x| - 0.4) / |x| is 0.5 at |x| = 0.8: a relation needs more.
    assert relative_position(at(0, 0).box, at(0.799, 0).box) == set()
    assert relative_position(at(0, 0).box, at(0.801, 0).box) == {"left of"}


def test_position_agrees_with_the_renderers_truth():
    rng = np.random.default_rng(0)
    for _ in range(300):
        boxes = [(x - h, y - k, x + h, y + k) for x, y, h, k in rng.uniform((0, 0, 1, 1), (32, 32, 8, 8), (2, 4))]
        assert relative_position(*boxes) == world.relations_between(*boxes)


def test_overall_is_the_unweighted_mean():
    assert overall({"a": 1.0, "b": 0.5, "c": 0.0}) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("entry", "named"), [({"class": "cow", "count": 1}, "cow"), ({"class": "cat", "count": 1, "color": "pink"}, "pink")]
)
def test_unknown_class_or_color_is_named(entry, named):
    with pytest.raises(UserError, match=named):
        check_known({"include": [entry]}, "prompt 3", ["cat"], ["red"])


# --------------------------------------------------------------- a literal transcription of the protocol


def slow_relations(a, b) -> set[str]:
    """The rule as the protocol's text says it, scalar by scalar."""
    ax, ay, bx, by = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2
    wide, high = (a[2] - a[0]) + (b[2] - b[0]), (a[3] - a[1]) + (b[3] - b[1])
    right_by, down_by = ax - bx, ay - by
    distance = math.sqrt(right_by**2 + down_by**2)
    clear_x, clear_y = abs(right_by) - 0.1 * wide, abs(down_by) - 0.1 * high
    clear_x, clear_y = (c if c > 0 else 0.0 for c in (clear_x, clear_y))
    if clear_x < 0.001 and clear_y < 0.001:
        return set()
    relations = set()
    if clear_x / distance > 0.5:
        relations.add("right of" if right_by > 0 else "left of")
    if clear_y / distance > 0.5:
        relations.add("below" if down_by > 0 else "above")
    return relations


def slow_verdict(detections, row, color_of) -> bool:
    limit = 0.9 if row["tag"] == "counting" else 0.3
    objects = {}
    for name in detections:
        strong = [d for d in detections[name] if d.score > limit]
        ranked = []
        while strong and len(ranked) < 16:
            best = strong[0]
            for d in strong:
                if d.score > best.score:
                    best = d
            strong.remove(best)
            ranked.append(best)
        objects[name] = ranked
    fine, matched = True, {}
    for index, wanted in enumerate(row["include"]):
        matched[index] = None
        candidates = objects.get(wanted["class"], [])
        if len(candidates) < wanted["count"]:
            fine = False
            continue
        chosen = candidates[: wanted["count"]]
        good = True
        if "color" in wanted:
            good = len([d for d in chosen if color_of(d) == wanted["color"]]) >= wanted["count"]
        if good and "position" in wanted:
            relation, target = wanted["position"]
            if matched[target] is None:
                good = False
            else:
                good = all(relation in slow_relations(d.box, t.box) for d in chosen for t in matched[target])
        if good:
            matched[index] = chosen
        fine = fine and good
    for unwanted in row.get("exclude", []):
        if len(objects.get(unwanted["class"], [])) >= unwanted["count"]:
            fine = False
    return fine


NAMES, COLORS = ("cat", "dog"), ("red", "blue")
boxes = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 8)] * 2).map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]))
scores = st.sampled_from([0.2, 0.3, 0.31, 0.5, 0.89, 0.9, 0.91, 0.99])
detection_sets = st.dictionaries(st.sampled_from(NAMES), st.lists(st.builds(Detection, boxes, scores), max_size=20))


@st.composite
def prompt_rows(draw):
    include = []
    for index in range(draw(st.integers(1, 3))):
        entry = {"class": draw(st.sampled_from(NAMES)), "count": draw(st.integers(1, 3))}
        if draw(st.booleans()):
            entry["color"] = draw(st.sampled_from(COLORS))
        if index and draw(st.booleans()):
            entry["position"] = [draw(st.sampled_from(world.RELATIONS)), draw(st.integers(0, index - 1))]
        include.append(entry)
    row = {"tag": draw(st.sampled_from(world.TASKS)), "include": include}
    if draw(st.booleans()):
        row["exclude"] = [{"class": draw(st.sampled_from(NAMES)), "count": draw(st.integers(1, 4))}]
    return row


@settings(max_examples=400, deadline=None)
@given(detection_sets, prompt_rows())
def test_same_verdict_as_the_transcription(detections, row):
    def color_of(detection: Detection) -> str:
        return COLORS[int(sum(detection.box)) % 2]

    verdict = judge(detections, row, lambda objects, name: [color_of(d) for d in objects])
    assert verdict.correct == slow_verdict(detections, row, color_of)
    assert verdict.correct == (not verdict.reasons)
