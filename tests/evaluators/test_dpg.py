"""DPG-Bench: its arithmetic against a slow literal transcription, its files, its layouts, its judges, and answers that are kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apex.data.prompts import load_prompts
from apex.errors import UserError, run_command
from evaluators.dpg import __main__ as command
from evaluators.dpg import grids, judges, prompts
from evaluators.dpg.questions import CATEGORIES, COLUMNS, Item, Question, load
from evaluators.dpg.score import gated, metrics, read_answer, tally
from evaluators.result import read_record
from evaluators.statistics import bootstrap_weights

ROWS = [  # item, text, number, dependency, category, question
    ("whoops7", "a red cube on a table", 1, "0", "entity - whole", "Is there a cube?"),
    ("whoops7", "a red cube on a table", 2, "1", "attribute - color", "Is the cube red?"),
    ("drawtext1", "two dogs, left of a cat", 1, "0", "entity - whole", "Are there dogs?"),
    ("drawtext1", "two dogs, left of a cat", 2, "1", "other - count", "Are there two dogs?"),
    ("drawtext1", "two dogs, left of a cat", 3, "1, 4", "relation - spatial", "Are the dogs left of the cat?"),
    ("drawtext1", "two dogs, left of a cat", 4, "0", "entity - whole", "Is there a cat?"),
    ("12", "a photo of a street", 1, "0", "global -", "Is this a photo?"),
]


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., Path]:
    """questions(rows) writes a file such as dpg_bench.csv."""

    def write(rows: list[tuple] = ROWS) -> Path:
        with (tmp_path / "dpg_bench.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, "keywords"])
            writer.writeheader()
            for item, text, number, dependency, category, question in rows:
                values = (item, text, number, dependency, f"{category} (thing)", question)
                writer.writerow(dict(zip(COLUMNS, values, strict=True)))
        return tmp_path / "dpg_bench.csv"

    return write


# --------------------------------------------------------------- a literal transcription of the protocol


def slow(items: dict[str, dict], answers: dict[str, list[list[str]]]) -> tuple[float, dict[str, float]]:
    """Overall and categories, as the official code goes about it: one dictionary of scores, written over image by image."""
    overall, per_category = [], {}
    for name, item in items.items():
        scores, means, before = {}, [], {}
        try:
            for row in answers[name]:
                for (number, _, _), text in zip(item["questions"], row, strict=True):
                    scores[number] = 1.0 if text == "yes" else 0.0
                before = dict(scores)
                for number, parents, _ in item["questions"]:
                    if any(scores[parent] == 0 for parent in parents if parent != 0):
                        scores[number] = 0.0
                means.append(sum(scores.values()) / len(scores))
        except KeyError:
            continue
        overall.append(sum(means) / len(means))
        for number, _, category in item["questions"]:
            per_category.setdefault(category, []).append(before[number])
    return 100 * float(np.mean(overall)), {c: 100 * float(np.mean(v)) for c, v in per_category.items()}


@st.composite
def benches(draw) -> tuple[dict[str, Item], dict[str, list[list[str]]]]:
    items, answers = {}, {}
    for p in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 6))
        chosen = [
            Question(n, tuple(draw(st.lists(st.integers(1, count), max_size=2))), draw(st.sampled_from(CATEGORIES)), "x", f"{n}?")
            for n in draw(st.permutations(range(1, count + 1)))
        ]
        items[f"p{p}"] = Item(f"p{p}", f"prompt {p}", tuple(chosen))
        words = st.sampled_from(["yes", "no", "2", "Yes"])
        answers[f"p{p}"] = draw(st.lists(st.lists(words, min_size=count, max_size=count), min_size=4, max_size=4))
    return items, answers


@given(benches())
def test_same_scores_as_the_transcription(bench):
    items, answers = bench
    yes = {name: np.array([[read_answer(t, exact=True) is True for t in row] for row in rows]) for name, rows in answers.items()}
    found = tally(items, yes, last_image_only=True)
    plain = {name: {"questions": [(q.number, q.parents, q.category) for q in item.questions]} for name, item in items.items()}
    overall, categories = slow(plain, answers)
    values = {m.metric: m.value for m in metrics(found, "dpg", bootstrap_weights([""] * len(items), resamples=20))}
    assert values.pop("dpg/overall") == pytest.approx(overall)
    assert values == pytest.approx({f"dpg/{name}": value for name, value in categories.items()})


@given(benches())
def test_all_images_weigh_the_same_in_the_repaired_reading(bench):
    items, answers = bench
    yes = {name: np.array([[t == "yes" for t in row] for row in rows]) for name, rows in answers.items()}
    backwards = {name: rows[::-1] for name, rows in yes.items()}
    a, b = (tally(items, each, last_image_only=False) for each in (yes, backwards))
    assert np.allclose(a.scores, b.scores) and np.array_equal(a.yeses, b.yeses) and np.array_equal(a.asked, b.asked)


def test_a_failure_goes_down_a_chain_only_in_the_files_order():
    down = [Question(1, (), "entity", "", ""), Question(2, (1,), "entity", "", ""), Question(3, (2,), "entity", "", "")]
    yes = np.array([[False, True, True]])
    assert gated(down, yes).tolist() == [[False, False, False]]
    up = [down[2], down[1], down[0]]
    assert gated(up, yes[:, ::-1]).tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("text", "loose", "exact"),
    [
        ("yes", True, True),
        ("no", False, False),
        ("Yes, it is.", True, None),
        ("NO.", False, None),
        ("yesterday", None, None),
        ("", None, None),
    ],
)
def test_an_answer_begins_with_yes_or_no(text, loose, exact):
    assert read_answer(text, exact=False) is loose and read_answer(text, exact=True) is exact


# --------------------------------------------------------------- the questions' file


def test_the_file_is_read(questions):
    bench = load(questions())
    assert bench.prompts == {"whoops7": ROWS[0][1], "drawtext1": ROWS[2][1], "12": ROWS[6][1]}
    assert [q.parents for q in bench.items["drawtext1"].questions] == [(), (1,), (1, 4), ()]
    assert [q.category for q in bench.items["drawtext1"].questions] == ["entity", "other", "relation", "entity"]
    assert bench.oddities == []


def test_the_official_code_skips_the_first_row_and_loses_the_prompt_that_needs_it(questions):
    kept, left_out = load(questions()).official()
    assert left_out == ["whoops7"] and list(kept) == ["drawtext1", "12"]
    kept, left_out = load(questions([ROWS[6], ROWS[2], ROWS[5]])).official()
    assert left_out == ["12"] and list(kept) == ["drawtext1"], "its only question was in the first row"
    kept, left_out = load(questions([ROWS[0], ROWS[2], ("whoops7", ROWS[0][1], 2, "0", "entity - whole", "Is there a table?")])).official()
    assert left_out == [] and len(kept["whoops7"].questions) == 1


def test_oddities_are_named(questions):
    rows = [*ROWS, ("12", ROWS[6][1], 2, "9", "entity - whole", "A?"), ("12", ROWS[6][1], 3, "4", "entity - whole", "B?")]
    bench = load(questions([*rows, ("12", ROWS[6][1], 4, "3", "entity - whole", "C?"), ("12", ROWS[6][1], 4, "3", "entity - whole", "D?")]))
    assert [text.split(": ", 1)[1] for text in bench.oddities] == [
        "question 4 is given twice, the last one counts",
        "depends on questions that are not there: 9",
        "question 3 depends on itself",
    ]
    assert bench.items["12"].questions[-1].text == "D?"


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (("a/b", "text", 1, "0", "entity - whole", "Q?"), "item_id 'a/b'"),
        (("12", "another text", 2, "0", "entity - whole", "Q?"), "12 has another text"),
        (("12", ROWS[6][1], "two", "0", "entity - whole", "Q?"), "line 9: .*whole numbers"),
        (("12", ROWS[6][1], 2, "", "entity - whole", "Q?"), "whole numbers"),
        (("12", ROWS[6][1], 2, "0", "mood - dark", "Q?"), "category 'mood'"),
        (("12", ROWS[6][1], 2, "0", "entity - whole", " "), "question_natural_language is empty"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_by_its_line(questions, row, named):
    with pytest.raises(UserError, match=named):
        load(questions([*ROWS, row]))


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("item_id,text\n1,a\n")
    with pytest.raises(UserError, match="columns missing: proposition_id, dependency"):
        load(tmp_path / "a.csv")


def test_the_prompts_become_a_prompt_file_and_the_official_folder(questions, tmp_path):
    prompts.main(["--questions", str(questions()), "--out", str(tmp_path / "p.jsonl"), "--out-texts", str(tmp_path / "texts")])
    rows = load_prompts(tmp_path / "p.jsonl")
    assert {row["item_id"]: row["prompt"] for row in rows} == load(questions()).prompts
    assert [row["tag"] for row in rows] == ["whoops", "drawtext", "numbered"]
    assert (tmp_path / "texts" / "12.txt").read_text() == ROWS[6][1]


# --------------------------------------------------------------- the command


class Looker:
    """Says yes when the question's length is even or the image is bright; knows what it was asked."""

    exact = False
    asked = 0

    def __init__(self, *_: object) -> None:
        self.identity = {"judge": "looker"}

    def answer(self, images, texts):
        Looker.asked += len(texts)
        return [
            "Maybe" if "left" in t else "yes" if len(t) % 2 == 0 or np.asarray(i).mean() > 128 else "no"
            for i, t in zip(images, texts, strict=True)
        ]


@pytest.fixture
def score(questions, tmp_path, monkeypatch):
    """score(folder, *more) runs the command with `Looker` and gives the record."""
    monkeypatch.setitem(judges.JUDGES, "mplug", Looker)
    Looker.asked = 0

    def run(folder: Path, *more: str):
        arguments = ["--images", folder, "--out", tmp_path / "dpg.json", "--questions", questions(), "--device", "cpu", *more]
        command.main([str(a) for a in arguments])
        return read_record(tmp_path / "dpg.json")

    return run


@pytest.fixture
def folder(make_folder) -> Path:
    """Four images of each prompt, in another order than the file's; one is found by its text alone."""
    rng = np.random.default_rng(0)
    rows = [{"prompt": ROWS[6][1], "item_id": "12"}, {"prompt": ROWS[0][1]}, {"prompt": "dogs, rewritten", "item_id": "drawtext1"}]
    return make_folder(rows, images=rng.choice([20, 230], (12, 1, 1, 1)).astype(np.uint8) + np.zeros((12, 16, 16, 3), np.uint8))


def test_a_folder_becomes_a_record(score, folder):
    record = score(folder)
    assert {m.metric for m in record.metrics} == {
        f"{prefix}/{name}"
        for prefix, names in (("dpg", ("other", "entity", "global", "relation")), ("dpg_all", (*CATEGORIES,)))
        for name in (*names, "overall")
    }
    details = record.details
    assert (details["questions"], details["prompts_rewritten"], details["images_per_prompt"], details["resolution"]) == (28, 1, 4, 16)
    assert details["left_out_by_the_official_code"] == ["whoops7"] and not details["comparable"]
    assert details["malformed"] == {"count": 4, "examples": ["Maybe"]}
    for m in record.metrics:
        assert 0 <= m.ci_low <= m.value + 1e-9 and m.value - 1e-9 <= m.ci_high <= 100
    assert record.value("dpg_all/overall") == pytest.approx(np.mean([p["score"] for p in details["per_prompt"]]), abs=1e-3)


def test_grids_score_as_the_single_images_do_and_ask_nothing_new(score, folder, questions, tmp_path):
    singles = score(folder)
    grids.main(["--images", str(folder), "--out", str(tmp_path / "flat"), "--questions", str(questions())])
    assert sorted(p.name for p in (tmp_path / "flat").iterdir()) == ["12.png", "drawtext1.png", "whoops7.png"]
    asked = Looker.asked
    assert asked == 28
    flat = score(tmp_path / "flat", "--row", "real", "--nfe", "0", "--resolution", "16")
    assert Looker.asked == asked, "the same pixels and questions are in the journal"
    assert {m.metric: m.value for m in flat.metrics} == pytest.approx({m.metric: m.value for m in singles.metrics})
    one = score(tmp_path / "flat", "--row", "real", "--nfe", "0", "--layout", "single")
    assert (one.details["images_per_prompt"], one.details["resolution"], one.details["questions"]) == (1, 32, 7)


def test_a_call_that_was_cut_off_goes_on(score, folder, monkeypatch):
    whole = score(folder)
    for path in (folder.parent / "answers").iterdir():
        path.unlink()
    plain = Looker.answer

    def cut(self, images, texts):
        if Looker.asked > 30:
            raise KeyboardInterrupt
        return plain(self, images, texts)

    monkeypatch.setattr(Looker, "answer", cut)
    Looker.asked = 28
    with pytest.raises(KeyboardInterrupt):
        score(folder)
    monkeypatch.setattr(Looker, "answer", plain)
    Looker.asked = 0
    again = score(folder)
    assert 0 < Looker.asked < 28
    assert again.metrics == whole.metrics and again.details == whole.details


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda f: (f / "00001" / "metadata.jsonl").write_text('{"prompt": "of no set"}'),
            "1 prompts match no question set.*prompt 1 is none",
        ),
        (lambda f: (f / "00001" / "metadata.jsonl").write_text('{"prompt": "x", "item_id": "12"}'), "1 prompts come twice: 12"),
    ],
)
def test_prompts_that_are_not_the_benchmarks_are_named_before_any_question(score, folder, change, named):
    change(folder)
    with pytest.raises(UserError, match=named):
        score(folder)
    assert Looker.asked == 0


def test_missing_prompts_are_named_or_allowed(score, make_folder):
    few = make_folder([{"prompt": ROWS[6][1], "item_id": "12"}], images=np.full((4, 16, 16, 3), 230, np.uint8))
    with pytest.raises(UserError, match=r"2 of 3 prompts have no image: whoops7; drawtext1.*--partial"):
        score(few)
    record = score(few, "--partial")
    assert record.details["prompts_missing"] == 2 and record.value("dpg/global") == 100
    with pytest.raises(UserError, match="--resolution 32: the images are 16"):
        score(few, "--partial", "--resolution", "32")


def test_a_flat_folder_of_other_names_or_shapes_is_refused(score, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (16, 12)).save(flat / "12.png")
    who = ("--row", "a", "--nfe", "1", "--partial")
    with pytest.raises(UserError, match="16x12 cannot be cut"):
        score(flat, *who)
    Image.new("RGB", (16, 16)).save(flat / "stranger.png")
    with pytest.raises(UserError, match="1 pictures are named after no prompt: stranger"):
        score(flat, *who)


# --------------------------------------------------------------- judges of transformers' own classes, tiny


@pytest.fixture(scope="module", params=["vilt", "blip", "llava"])
def tiny(request, tmp_path_factory) -> tuple[str, Path]:
    from tests.evaluators.tiny_vqa import build

    kind = "transformers-vlm" if request.param == "llava" else "transformers-vqa"
    return kind, build(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def test_a_judge_says_the_same_in_any_batch(tiny):
    kind, folder = tiny
    rng = np.random.default_rng(0)
    images = [Image.fromarray(np.full((24, 24, 3), rng.integers(0, 255, 3), np.uint8)) for _ in range(12)]
    asked = [
        "is there a red circle ?",
        "how many ?",
        "is the square on the left of a blue circle ?",
        "is a green square in the image ?",
    ] * 3
    many = judges.JUDGES[kind](str(folder), "cpu", "float32", 16)
    together = many.answer(images, asked)
    one = judges.JUDGES[kind](str(folder), "cpu", "float32", 1)
    assert together == one.answer(images, asked) and one.identity == many.identity
    assert together[::-1] == many.answer(images[::-1], asked[::-1])
    assert len(set(together)) > 1, "answers that never differ would show nothing"
    assert many.identity["weights_sha256"] and many.identity["class"].startswith(folder.name.capitalize())


def test_other_weights_are_another_identity(tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    kind, folder = tiny
    other = shutil.copytree(folder, tmp_path / folder.name)
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    a, b = (judges.JUDGES[kind](str(f), "cpu", "float32", 4).identity for f in (folder, other))
    assert a != b and {k: v for k, v in a.items() if k != "weights_sha256"} == {k: v for k, v in b.items() if k != "weights_sha256"}


@pytest.mark.parametrize("fault", ["lacking", "left over", "not finite"])
def test_a_judge_that_is_not_what_its_file_says_is_refused(tiny, tmp_path, fault):
    """transformers would initialise the tensor anew, leave it out, or answer with what NaN gives."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    kind, folder = tiny
    file = shutil.copytree(folder, tmp_path / folder.name) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name, value in sorted(weights.items()) if name.endswith(".weight") and value.is_floating_point())
    if fault == "lacking":
        del weights[name]
    elif fault == "left over":
        weights["one.more"] = torch.zeros(2)
    else:
        weights[name].view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    said = {"lacking": "found no such tensor", "left over": "without a place", "not finite": "not finite"}[fault]
    with pytest.raises(UserError, match=rf"model\.safetensors: .*{said}.*; fetch it again") as error:
        judges.JUDGES[kind](str(file.parent), "cpu", "float32", 4)
    assert "\n" not in str(error.value)


def test_what_is_no_model_for_the_judge_is_named(tiny, tmp_path):
    _, folder = tiny
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        judges.TransformersVqa(str(tmp_path), "cpu", "float32", 4)
    with pytest.raises(UserError, match="give --model"):
        judges.TransformersVlm(None, "cpu", "float32", 4)
    if folder.name == "llava":
        with pytest.raises(UserError, match="of type llava; transformers-vqa takes vilt and blip"):
            judges.TransformersVqa(str(folder), "cpu", "float32", 4)


def test_the_command_with_a_real_judge(tiny, folder, questions, tmp_path, capsys):
    kind, model = tiny
    arguments = [
        "--images",
        folder,
        "--out",
        tmp_path / "r.json",
        "--questions",
        questions(),
        "--device",
        "cpu",
        "--judge",
        kind,
        "--model",
        model,
    ]
    assert run_command(lambda: command.main([str(a) for a in arguments])) == 0
    record = read_record(tmp_path / "r.json")
    assert record.details["judge"]["judge"] == kind and record.details["comparable"] is False
    assert str(tmp_path) not in json.dumps(record.details["judge"]), "no path of this machine"


def test_without_modelscope_one_line_says_what_the_protocols_judge_needs(folder, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judges.importlib.util, "find_spec", lambda name: None)
    arguments = ["--images", folder, "--out", tmp_path / "r.json", "--questions", questions(), "--device", "cpu"]
    assert run_command(lambda: command.main([str(a) for a in arguments])) == 2
    assert "error: --judge mplug: modelscope is not installed" in capsys.readouterr().err
