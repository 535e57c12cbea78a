"""Text that quotes results: its numbers are those of the committed records, and there are no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from apex.errors import UserError
from paper_tables.quoted import BLOCK, QUOTATIONS, ROOT, Quotes, filled, written

README = ROOT / "README.md"
RECORD = ROOT / "results/reference/matrix/records/teacher/nfe25/seed0/test/geneval.json"


@pytest.fixture(scope="module")
def quotes() -> Quotes:
    return Quotes()


def test_the_readme_says_what_the_committed_records_say(quotes):
    """Where this fails: python -m paper_tables.quoted README.md."""
    text = README.read_text()
    assert len(BLOCK.findall(text)) == text.count("<!-- quoted: ") == text.count("<!-- end quoted -->") >= 2
    assert written(text, quotes) == text


def test_the_readme_has_no_result_outside_its_blocks():
    """A result is a number with two decimals or more, or a percentage; 95% intervals, arXiv numbers and Python's versions are none."""
    prose = BLOCK.sub("", README.read_text())
    prose = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|^    .*$", " ", prose, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\b\d{4}\.\d{5}\b|\b3\.1[0-9]\b|\b95%", " ", prose)
    assert re.findall(r"[^\s|]*\d\.\d{2,}[^\s|]*|\b\d+(?:\.\d+)?%", prose) == []


def test_each_quotation_takes_its_number_from_the_records(quotes):
    record = json.loads(RECORD.read_text())
    seeds = [json.loads(RECORD.parents[2].joinpath(f"seed{k}/test/geneval.json").read_text()) for k in range(3)]
    overall = sum(one["metrics"][0]["value"] for one in seeds) / 3
    assert record["metrics"][0]["metric"] == "geneval/overall"
    said = filled("{value:4 geneval/overall teacher@25} {seeds teacher@25} {ratio geneval/overall teacher@25 teacher@25}", quotes, "x")
    assert said == f"{overall:.4f} 3 1.00"
    assert re.fullmatch(r"0\.93 \[0\.\d\d, 0\.\d\d\]", filled("{interval geneval/overall teacher@25}", quotes, "x"))
    assert filled('{printed table1 "APEX 20B LoRA r=64@1" geneval}', quotes, "x") == "0.89"
    assert filled("{difference:1 geneval/overall teacher@25 noise@0}", quotes, "x").startswith("0.9 [0.9")
    assert filled("{stands geneval/overall teacher@25 noise@0}", quotes, "x") == "above"
    assert filled("{stands geneval/overall noise@0 teacher@25}", quotes, "x") == "below"
    assert filled("{stands geneval/overall teacher@25 teacher@25}", quotes, "x") == "not told apart from"
    assert float(filled("{cost:3 rcgm rcgm steps}", quotes, "x")) == 1
    assert float(filled("{cells:3 table7 apex apex}", quotes, "x").split()[0]) == 0
    assert set(QUOTATIONS) <= set(dir(quotes))


def test_another_record_gives_another_text(tmp_path: Path):
    """The same template over records whose numbers differ."""
    copy = tmp_path / "matrix" / RECORD.relative_to(ROOT / "results/reference/matrix")
    copy.parent.mkdir(parents=True)
    record = json.loads(RECORD.read_text())
    for prompt in record["details"]["per_prompt"]:
        prompt["correct"] = 0
    for metric in record["metrics"]:
        metric |= {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    copy.write_text(json.dumps(record))
    assert filled("{interval geneval/overall teacher@25}", Quotes(tmp_path), "x") == "0.00 [0.00, 0.00]"


@pytest.mark.parametrize(
    ("quotation", "said"),
    [
        ("{values x}", "found 'values', expected one of value, interval"),
        ("{value geneval/overall nobody@1}", "no record of geneval/overall of nobody at NFE 1"),
        ("{value geneval/overall apex}", "found 'apex', expected ROW@NFE, such as apex@1"),
        ("{value apex@1}", "missing 1 required positional argument"),
        ("{cell table9 apex}", "unknown grid 'table9'; known: table7"),
        ("{cell table7 apex,a=3}", "no record of cell 'apex,a=3' of table7; cells: apex"),
        ("{printed table1 nobody@1 geneval}", "table1 has 0 rows 'nobody@1', expected one"),
        ("{ratio geneval/overall apex@1 noise@0}", "of noise@0 is 0: there is no ratio"),
        ("{cost nobody apex steps}", "no record of steps of nobody or apex"),
        ("{stands speed/latency_b1_s apex@1 lcm@1}", "speed/latency_b1_s of apex@1 minus lcm@1 has no interval"),
    ],
)
def test_a_quotation_without_an_answer_is_one_line(quotes, quotation: str, said: str):
    with pytest.raises(UserError) as error:
        filled(quotation, quotes, "headline.md")
    assert said in str(error.value) and str(error.value).startswith(f"headline.md: {quotation}: ") and "\n" not in str(error.value)


def test_a_block_without_a_template_is_one_line(quotes, tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.md: not found; a block `<!-- quoted: nothing -->` takes its text from there"):
        written("<!-- quoted: nothing -->\n<!-- end quoted -->", quotes, tmp_path)
