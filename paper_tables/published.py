"""The paper's Tables 1-7 and the outside facts that the audit and the tables read, as data.

published/table1..7.csv   the paper's tables, digits as printed (strings keep the number of decimals)
published/sana_sprint.csv Sana-Sprint's own comparison, the rows that Table 1 shares with it
published/other.csv       single numbers from other papers, with what they compare to
published/networks.yaml   public parameter counts, the LoRA targets, the machine of Table 1, what training sets hold
text_claims.yaml          what the paper's text says about its tables
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from apex.errors import UserError
from apex.strict import Strict, explain, parse_yaml
from paper_tables.shared import shared

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE / "published"
TABLES = tuple(f"table{number}" for number in range(1, 8))
Row = dict[str, str]

# Columns that hold a published number, by file. The rest are labels.
NUMERIC = {
    "table1": ("nfe", "throughput_samples_s", "latency_s", "params_b", "fid", "clip", "geneval"),
    "table2": ("single_object", "two_object", "counting", "colors", "position", "attribute_binding", "overall"),
    "table3": ("global", "entity", "attribute", "relation", "other", "overall"),
    "table4": ("cultural", "time", "space", "biology", "physics", "chemistry", "overall"),
    "table5": ("steps", "geneval"),
    "table6": ("lambda_p", "lambda_e", "apex_0_6b", "apex_1_6b", "apex_20b_lora_r32"),
    "table7": ("a", "b", "geneval"),
    "sana_sprint": ("nfe", "throughput_samples_s", "latency_s", "params_b", "fid", "clip", "geneval"),
    "other": ("value",),
}
# Six GenEval tasks: the paper's column name -> the benchmark's tag, which the records use.
GENEVAL_TASKS = {
    "single_object": "single_object",
    "two_object": "two_object",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "attribute_binding": "color_attr",
}


@dataclass(frozen=True, eq=False)
class Published:
    """All files of the `published` folder; `tables` maps a file's stem to its rows."""

    tables: dict[str, list[Row]]
    networks: dict[str, Any]
    claims: list[dict[str, Any]]

    def __getitem__(self, name: str) -> list[Row]:
        return self.tables[name]


def half_unit(text: str) -> float:
    """Half a unit of the last printed digit: the largest rounding error of a printed number. "0.84" -> 0.005."""
    return 0.5 * 10.0 ** -(len(text.split(".")[1]) if "." in text else 0)


def label(row: Row) -> str:
    """The row's name as the paper prints it."""
    return row.get("method") or row.get("model") or ", ".join(f"{key}={row[key]}" for key in list(row)[:2])


def slug(name: str) -> str:
    """ "APEX 20B LoRA r=32" -> "apex-20b-lora-r-32": how a row of the paper may be named in a results folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def find(rows: list[Row], where: dict[str, Any]) -> list[Row]:
    """Rows that match every key of `where` (a value or a list of values; `prefix` matches the start of the name)."""

    def matches(row: Row) -> bool:
        for key, wanted in where.items():
            if key == "prefix":
                if not label(row).startswith(wanted):
                    return False
            elif row.get(key) not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    return [row for row in rows if matches(row)]


def load(folder: Path = PUBLISHED, claims: Path | None = None) -> Published:
    """Reads the folder. A missing file or column, or a cell that is no number, is a `UserError` naming file, row and key."""
    return _load(folder, claims or HERE / "text_claims.yaml")


@shared
def _load(folder: Path, claims: Path) -> Published:
    tables = {}
    for name, numeric in NUMERIC.items():
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path}: not found; the published tables belong in this folder")
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        missing = [key for key in (*numeric, "citation", "source") if not rows or key not in rows[0]]
        if missing:
            raise UserError(
                f"{path}: column {missing[0]!r} is missing or the file has no rows; expected {', '.join((*numeric, 'citation', 'source'))}"
            )
        for row in rows:
            for key in numeric:
                if row[key] and not re.fullmatch(r"-?\d+(\.\d+)?", row[key]):
                    raise UserError(f"{path}: row {label(row)!r}, column {key!r}: found {row[key]!r}, expected a number or nothing")
        tables[name] = rows
    networks = yaml.safe_load((folder / "networks.yaml").read_text(encoding="utf-8"))
    return Published(tables, networks, _sayings(claims))


class _Saying(Strict):
    """What the paper's text says about its own tables."""

    id: str
    location: str
    verbatim: bool
    says: str = Field(min_length=5)


def _sayings(path: Path) -> list[dict[str, Any]]:
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, list):
        raise UserError(f"{path}: found {type(values).__name__}, expected a list of sayings")
    found = []
    for at, value in enumerate(values, 1):
        try:
            found.append(_Saying.model_validate(value).model_dump())
        except ValidationError as error:
            name = value.get("id", f"number {at}") if isinstance(value, dict) else f"number {at}"
            raise UserError(explain(error, _Saying, f"{path}: saying {name}")) from None
    return found
