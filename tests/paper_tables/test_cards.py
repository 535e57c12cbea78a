"""Model cards: a head that the hub can read, the numbers of the records, and what stock loading reproduces."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apex import card
from apex.data import overlap
from paper_tables import cards, tables_methods
from paper_tables.records import read_object
from paper_tables.view import View

WORLD = "workflows/config/matrix.yaml"
REFERENCE = Path("results/reference/matrix")


@pytest.fixture(scope="module")
def made(run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cards of the committed results."""
    out = tmp_path_factory.mktemp("cards")
    assert run(cards.main, "--config", WORLD, "--results", REFERENCE, "--out", out) == 0
    return out


def test_every_run_has_a_card_with_the_numbers_of_its_records(made: Path) -> None:
    rows = {path.parent.parent.name for path in REFERENCE.glob("runs/*/seed*/made.json")}
    assert {path.stem for path in made.glob("*.md")} == rows and "apex" in rows
    metrics = list(csv.DictReader((REFERENCE / "metrics.csv").open()))
    for row in rows:
        text = (made / f"{row}.md").read_text()
        found = [line.split(" | ") for line in text.splitlines() if line.startswith("| GenEval |")]
        for _, nfe, value, *_ in found:
            mine = [
                float(m["value"]) for m in metrics if (m["row"], m["nfe"], m["split"], m["metric"]) == (row, nfe, "test", "geneval/overall")
            ]
            assert float(value.split()[0]) == pytest.approx(sum(mine) / len(mine), rel=0.006, abs=1e-5), (row, nfe)
        assert len(found) >= 3 and "None" not in text


def test_the_head_is_what_the_hub_reads() -> None:
    about = read_object(REFERENCE / "runs/apex/seed0/made.json")
    about.pop("prompts_seen")  # as of a run from before it was recorded
    recipe = read_object(REFERENCE / "runs/apex/seed0/sampling.json")
    plain = card.text(about, recipe)
    head = yaml.safe_load(plain.split("---\n")[1])
    assert head["library_name"] == "diffusers" and "base_model" not in head and {"apex", "sana"} <= set(head["tags"])
    assert "Not measured yet." in plain and "`one_step/transformer`: NFE 1" in plain and "sigmas=[1.0, 0.6]" in plain
    assert "nothing about photographs" in plain
    assert "| optimiser | AdamW, learning rate" in plain and "prompts in training" not in plain
    assert "left out" not in plain and "captions cut" not in plain
    counted = card.text(about | {"left_out": {"skipped": {"count": 1203, "limit": 2000, "first": []}, "captions_cut": 7}}, recipe)
    assert "\n| left out | 1,203 samples and files with a defect |\n| captions cut | 7, because" in counted
    about["run"]["train"]["optimizer"] = "adamw8bit"
    about["run"]["data"] |= {"source": "teacher", "teacher": {"prompts": "p.txt", "count": 60000, "steps": 50}}
    assert "| data | 60,000 pictures that the teacher drew in 50 steps, 32 px |" in card.text(about, recipe)
    about["run"]["data"]["teacher"]["count"] = None
    assert "| data | a picture of every prompt that the teacher drew in 50 steps, 32 px |" in card.text(about, recipe)
    about["run"]["data"]["source"] = "data/blip3o_60k"  # a cell of an ablation, of a profile whose teacher drew
    assert "| data | data/blip3o_60k, 32 px |" in card.text(about, recipe)
    about["training"]["stopped"] = "the loss is nan at step 9"
    text = card.text(about | {"tuning": "lora", "hub": "Qwen/Qwen-Image@abc"}, recipe)
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["base_model"], head["base_model_relation"]) == ("Qwen/Qwen-Image", "adapter")
    assert "the teacher's licence holds" in text and "It stopped early: the loss is nan at step 9" in text
    assert "AdamW with moments of 8 bits, learning rate" in text


def test_a_lora_is_loaded_from_its_own_folder() -> None:
    about, recipe = (read_object(REFERENCE / f"runs/apex-lora/seed0/{name}.json") for name in ("made", "sampling"))
    plain = card.text(about, recipe)
    assert "`lora`: NFE 1, 2, 4" in plain and "`transformer`" not in plain
    assert "```python" not in plain, "no stock pipeline has the world's text encoder"
    about["run"]["data"] |= {"source": "data/blip3o_60k", "resolution": 512}
    text = card.text(about | {"hub": "Owner/Sana@abc"}, recipe)
    assert 'SanaPipeline.from_pretrained("Owner/Sana")' in text and 'load_lora_adapter("lora", prefix=None' in text
    assert "sigmas=[1.0], height=512, width=512, guidance_scale=1.0)" in text
    recipe["stock"] = {"lora": recipe["stock"]["transformer"]}  # as runs say it now, whose keys a pipeline takes as they are
    text = card.text(about | {"hub": "Owner/Sana@abc"}, recipe | {"stock_sigmas": {}})
    assert 'pipe.load_lora_weights("lora")' in text and "load_lora_adapter" not in text and "`lora`: NFE 1, 2, 4" in text


def test_what_students_have_seen_of_the_prompts_is_said() -> None:
    """In the card of each run, and under the table of all, where rows of other data are spoken for by the one that has seen most."""
    few, many = (overlap.overlap(["a photo of a cat", "a photo of a dog"], captions) for captions in (["a cat"], ["a photo of a cat", "b"]))
    about = read_object(REFERENCE / "runs/apex/seed0/made.json") | {"prompts_seen": {"test": many}}
    said = "test: 1 of 2 prompts are training captions word for word, of 1 of 2 samples; 1 begin as its prompts do, “a photo of”"
    assert f"| prompts in training | {said} |" in card.text(about, read_object(REFERENCE / "runs/apex/seed0/sampling.json"))
    silent = [one for one in View.load(REFERENCE).found if "prompts_seen" not in (one.record.details.get("made") or {})]
    view = View(silent)
    view.made = {"apex": [{"prompts_seen": {"test": few}}, {}], "lcm": [{"prompts_seen": {"test": many, "mjhq": few}}]}
    words = tables_methods.seen_in_training(view)
    assert words.startswith("Prompts in training: mjhq: 0 of 2") and f"; {said}; not recorded of " in words
    assert words in tables_methods.comparison(view).remark
    view.made = {"apex": [{}]}
    assert tables_methods.seen_in_training(view) == "Prompts in training: not recorded."
    assert tables_methods.seen_in_training(View([one for one in view.found if one.record.row == "real"])) == "", "nothing was trained"


def test_results_without_a_run_are_one_line(run, make_results: Callable[..., Path], tmp_path: Path, capsys) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    assert run(cards.main, "--results", results, "--out", tmp_path / "out") == 2
    assert "found no runs, expected runs/<row>/seed<S>/made.json" in capsys.readouterr().err
