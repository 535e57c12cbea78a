"""The audit against numbers worked out by hand, and against tables in which a cell was changed."""

from __future__ import annotations

import copy
import csv
import html
import math
from pathlib import Path

import pytest

from paper_tables import audit, checks, checks_outside, published
from paper_tables.checks import VERDICTS, Finding
from paper_tables.published import Published, find, label


@pytest.fixture(scope="module")
def data() -> Published:
    return published.load()


@pytest.fixture(scope="module")
def findings(data: Published) -> list[Finding]:
    return [finding for one in audit.run(data) for finding in one.findings]


@pytest.fixture
def changed(data: Published) -> Published:
    """A copy whose cells a test may change."""
    return copy.deepcopy(data)


def found(findings: list[Finding], table: str, row: str, words: str = "") -> Finding:
    (one,) = [f for f in findings if f.table == table and row in f.row and words in f.what]
    return one


# What does not add up: verdict, table, row, words of the finding, numbers worked out by hand.
EXPECTED = [
    ("contradiction", "Table 4", "Show-o", "repeats the Table 2 row", "0.95, 0.52, 0.49, 0.82, 0.11, 0.28, 0.53"),
    # 0.4 x 0.34 + 0.167 x 0.45 + 0.133 x 0.48 + 0.1 x (0.41 + 0.45 + 0.47) = 0.40799
    ("contradiction", "Table 4", "Emu3-Gen", "WISE's weights", "computed 0.408, printed 0.39, off by -0.018"),
    # 0.4 x 0.44 + 0.167 x 0.55 + 0.133 x 0.68 + 0.1 x (0.44 + 0.60 + 0.39) = 0.50129
    ("contradiction", "Table 4", "BAGEL", "WISE's weights", "computed 0.501, printed 0.52, off by +0.019"),
    # 0.4 x 0.52 + 0.167 x 0.51 + 0.133 x 0.67 + 0.1 x (0.48 + 0.61 + 0.40) = 0.53128
    ("doubtful", "Table 4", "TwinFlow", "WISE's weights", "computed 0.531, printed 0.54"),
    ("contradiction", "Table 3", "SD3.5-Medium", "shifted by one", "published overall 84.08"),
    ("contradiction", "Table 3", "SD3.5-Medium", "those of another model, SD3-Medium", ""),
    ("contradiction", "Table 3", "Playground v3", "printed first", "published overall 87.04"),
    ("doubtful", "Table 3", "SD3.5-Turbo", "printed first", "leads by 5.73; overall would be 79.03"),  # 91.86 - 86.13
    ("doubtful", "Table 3", "SD3.5-Large", "printed first", "leads by 4.29; overall would be 83.21"),  # 93.28 - 88.99
    ("doubtful", "Table 3", "FLUX.1-schnell", "printed first", "leads by 2.63; overall would be 84.94"),  # 93.45 - 90.82
    ("contradiction", "Tables 5, 6", "APEX 1.6B", "different values", "Table 6 0.76; Table 5 0.78"),
    ("omission", "Tables 1, 5", "LoRA r=64", "above every cell", "headline 0.89; best of 6 cells 0.85, best at the stated 2K steps 0.84"),
    ("omission", "Tables 1, 5", "LoRA r=32", "above every cell", "headline 0.88; best of 6 cells 0.84, best at the stated 2K steps 0.83"),
    ("omission", "Table 7", "all", "no model, data or budget", ""),
    (
        "note",
        "Table 7",
        "a = -1, b = 0",
        "not the table's best cell",
        "0.76; 2 of 12 cells are above it, the best 0.81 at a = -0.5, b = 1.0",
    ),
    ("contradiction", "Table 6", "1:2 against 1:0.5", "ahead in 3 of 3 columns", "0.74 against 0.72"),
    ("contradiction", "Table 1", "APEX 1.6B against Sana-Sprint 1.6B", "more than twice as fast", "5.72 against 5.68 images/s: 1.007 x"),
    ("contradiction", "Table 1", "Qwen-Image-Lightning, RCGM, TwinFlow", "reaches 0.77", "Lightning 0.85, RCGM 0.82, TwinFlow 0.87"),
    ("omission", "Table 1", "APEX 0.6B, NFE 2", "RCGM Sana 0.6B", "0.85 against 0.84"),
    ("omission", "Table 1", "APEX 20B full, NFE 1", "equal to", "0.89 against 0.89"),
    ("omission", "Table 1", "APEX 20B full, NFE 2", "equal to", "0.90 against 0.90"),
    ("omission", "Table 3", "APEX 20B full", "TwinFlow Qwen-Image 20B", "DPG 87.54 against 84.59"),
    ("omission", "Table 4", "APEX 20B full", "TwinFlow Qwen-Image 20B", "WISE 0.57 against 0.54"),
    # 0.39 + 49 x 0.08 = 4.31 s, / 0.39 = 11.05; 0.39 + 99 x 0.08 = 8.31 s, / 0.39 = 21.31
    (
        "omission",
        "Table 1",
        "Qwen-Image, 50 steps",
        "cannot be derived",
        "= 5.98 s; with the table's own extra step of 0.08 s, 50 evaluations give 11.1x",
    ),
    ("note", "Table 1", "SDXL-LCM, PixArt-LCM", "17 of 17 shared rows equal Sana-Sprint's own table", "17 rows x 6 columns"),
    ("contradiction", "Table 1", "SDXL-LCM, PCM, SDXL-DMD2", "SDXL UNet", "printed 0.9B; public 2.567B"),
    ("contradiction", "Table 1", "APEX 0.6B against FLUX-schnell", "not in 1 of 3 columns", "clip 28.36 against 28.49"),
    ("note", "Table 3", "LoRA r=64", "on DPG every APEX 20B row lies below", "86.17, 85.77, 84.59 against 88.32"),
    ("note", "Table 4", "APEX 20B full", "on WISE every APEX 20B row lies below", "0.54 against 0.62"),
    ("note", "Table 2", "APEX 20B against Qwen-Image", "sampling error", "LoRA r=64 +0.02: 2.1 or 1.1 standard errors"),
    ("note", "Table 2", "APEX 0.6B, APEX 1.6B", "agree in 5 of 6 columns; 0 other of 210 pairs", "attribute_binding 0.69, 0.68"),
    # 1/3.15 - 1/3.29 = 13.5 ms; 1/3.17 - 1/3.27 = 9.6 ms
    ("doubtful", "Table 1", "APEX 20B LoRA r=64", "costs less per image", "TwinFlow 13.5 ms"),
    ("doubtful", "Table 1", "APEX 20B full", "more than the peak of one A100", "TwinFlow 3.1 x peak"),
    ("doubtful", "Table 2", "BAGEL", "rewritten prompts", "printed 0.88; 0.82 with"),
    ("note", "Table 3", "APEX 0.6B (1-NFE), APEX 1.6B (1-NFE)", "one constant", "+0.19, +0.20, +0.19, +0.21, +0.21"),
    ("note", "Table 5", "APEX 1.6B, 2000 steps", "turns round", "BLIP-3o 0.27, ShareGPT-4o 0.36"),
    (
        "note",
        "Table 5",
        "APEX 0.6B, APEX 1.6B, APEX 20B LoRA r=32, APEX 20B LoRA r=64",
        "geneval_train.tar",
        "APEX 0.6B 0.81 against 0.73 with ShareGPT-4o; APEX 1.6B 0.83 against 0.73 with ShareGPT-4o; "
        "APEX 20B LoRA r=32 0.83 against 0.62 with ShareGPT-4o; APEX 20B LoRA r=64 0.84 against 0.61 with ShareGPT-4o",
    ),
    ("note", "Table 1", "APEX 0.6B, NFE 2", "Sana-Sprint, the same network, is ahead", "fid 6.75 against 6.54; clip 28.33 against 28.40"),
]


@pytest.mark.parametrize(("verdict", "table", "row", "words", "computed"), EXPECTED)
def test_finding(findings: list[Finding], verdict: str, table: str, row: str, words: str, computed: str) -> None:
    finding = found(findings, table, row, words)
    assert finding.verdict == verdict
    assert computed in finding.computed


def test_what_adds_up(data: Published) -> None:
    """All 21 complete rows of Table 2 are means; Tables 1 and 2 agree; LoRA counts follow from the targets."""
    for check, examined in ((checks.overall_is_mean, 21), (checks.same_model_two_tables, 7), (checks_outside.lora_counts, 2)):
        done = check(data)
        assert (done.examined, done.findings) == (examined, [])


def test_rows_whose_cells_stand_right_are_left_alone(findings: list[Finding]) -> None:
    suspected = {f.row for f in findings if "printed first" in f.what}
    assert suspected == {"SD3.5-Medium", "SD3.5-Turbo", "SD3.5-Large", "FLUX.1-schnell", "Playground v3"}
    assert {f.row for f in findings if "WISE's weights" in f.what} == {"Show-o", "Emu3-Gen", "BAGEL", "TwinFlow"}


def test_lora_and_work_by_hand(data: Published) -> None:
    """60 blocks: 8 projections 3072 -> 3072 and 4 MLP layers 3072 <-> 12288; time embedder 256 -> 3072 -> 3072."""
    network = data.networks["qwen_image"]
    layers = 60 * (8 * (3072 + 3072) + 4 * (3072 + 12288)) + (256 + 3072) + (3072 + 3072)
    assert checks_outside.lora_parameters(network, data.networks["lora"], 32) == 32 * layers
    assert 32 * layers == pytest.approx(0.2126e9, rel=1e-3)
    assert checks_outside.image_flops(network) == 2 * 32**2 * 60 * (4 * 3072**2 + 2 * 3072 * 12288)


def test_geneval_error_by_hand(data: Published) -> None:
    (row,) = find(data["table2"], {"model": "Qwen-Image"})
    parts = [(0.99, 80), (0.92, 99), (0.89, 80), (0.88, 94), (0.76, 100), (0.77, 100)]
    clustered = math.sqrt(sum(p * (1 - p) / n for p, n in parts)) / 6
    assert checks_outside.geneval_error(row, clustered=True) == pytest.approx(clustered)
    assert checks_outside.geneval_error(row, clustered=False) == pytest.approx(clustered / 2)


# ------------------------------------------------------------------------------------- a changed cell changes the verdict


def verdicts(data: Published, words: str) -> set[str]:
    return {f.row for one in audit.run(data) for f in one.findings if words in f.what}


def put(data: Published, table: str, where: dict[str, str], **cells: str) -> None:
    (row,) = find(data[table], where)
    row |= cells


CHANGES = [
    ("repeats the Table 2 row", "table4", {"model": "Show-o"}, {"cultural": "0.94"}),
    ("shifted by one: its overall", "table3", {"model": "SD3.5-Medium"}, {"global": "84.09"}),
    ("more than twice as fast", "table1", {"method": "APEX 1.6B", "nfe": "2"}, {"throughput_samples_s": "11.40"}),
    (
        "1:2 is ahead",
        "table6",
        {"lambda_p": "1.0", "lambda_e": "0.5"},
        dict.fromkeys(("apex_0_6b", "apex_1_6b", "apex_20b_lora_r32"), "0.90"),
    ),
    ("different values for that setting", "table6", {"lambda_p": "1.0", "lambda_e": "1.0"}, {"apex_1_6b": "0.78"}),
    ("not in 1 of 3 columns", "table1", {"method": "APEX 0.6B", "nfe": "1"}, {"clip": "28.50"}),
    ("not the table's best cell", "table7", {"a": "-1.0", "b": "0.0"}, {"geneval": "0.82"}),
    ("agree in 5 of 6 columns", "table2", {"model": "APEX 1.6B"}, {"counting": "0.80"}),
    ("on rewritten prompts", "table2", {"model": "BAGEL"}, {"overall": "0.82"}),
    ("one constant", "table3", {"model": "APEX 1.6B (1-NFE)"}, {"entity": "91.56"}),
    ("on WISE every", "table4", {"model": "APEX 20B full (1-NFE)"}, {"overall": "0.63"}),
]


@pytest.mark.parametrize(("words", "table", "where", "cells"), CHANGES)
def test_a_finding_goes_with_its_cell(changed: Published, words: str, table: str, where: dict[str, str], cells: dict[str, str]) -> None:
    assert verdicts(changed, words)
    put(changed, table, where, **cells)
    assert not verdicts(changed, words)


def test_a_wrong_mean_is_seen(changed: Published) -> None:
    put(changed, "table2", {"model": "TwinFlow"}, overall="0.87")
    assert verdicts(changed, "not the mean") == {"TwinFlow"}
    assert "TwinFlow" in verdicts(changed, "different values for one model")


def test_a_wrong_lora_count_is_seen(changed: Published) -> None:
    for row in changed["table1"]:
        row["trainable_note"] = row["trainable_note"].replace("0.2B", "0.3B")
    assert verdicts(changed, "LoRA targets") == {"LoRA r=32"}


def test_the_headline_within_the_ablation_is_no_finding(changed: Published) -> None:
    put(changed, "table5", {"model": "APEX 0.6B", "dataset": "BLIP-3o", "steps": "10000"}, geneval="0.84")
    assert verdicts(changed, "above every cell") == {"APEX 1.6B", "APEX 20B LoRA r=32", "APEX 20B LoRA r=64"}


# ------------------------------------------------------------------------------------------------------- what is written


def test_audit_files_agree(data: Published, made: Path) -> None:
    done = audit.run(data)
    with (made / "audit" / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(one.findings) or 1 for one in done)
    order = [list(VERDICTS).index(row["verdict"]) for row in rows]
    assert order == sorted(order) and set(order) == set(range(len(VERDICTS)))
    markdown, page = ((made / "audit" / f"audit.{suffix}").read_text() for suffix in ("md", "html"))
    for row in rows:
        assert row["what"].replace("|", "\\|") in markdown
        assert html.escape(row["what"]) in page and html.escape(row["computed"]) in page


def test_every_saying_of_the_text_is_checked(data: Published) -> None:
    abouts = [one.about for one in audit.run(data)]
    for claim in data.claims:
        words = f"“{claim['says']}” ({claim['location']})" if claim["verbatim"] else f"{claim['says']} ({claim['location']})"
        assert abouts.count(f"The text: {words}") == 1


def test_rows_named_in_findings_exist(data: Published, findings: list[Finding]) -> None:
    names = {label(row) for table in data.tables.values() for row in table}
    for finding in findings:
        assert any(name in finding.row for name in names) or finding.table in ("Table 6", "Table 7") or finding.row == "APEX"
