"""DPG-Bench's prompts and questions: dpg_bench.csv of TencentQQGYLab/ELLA, one question a row, read and checked."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from apex.errors import UserError
from apex.provenance import file_sha256
from evaluators.flat import SAFE_ID

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")  # those that are read
CATEGORIES = ("global", "entity", "attribute", "relation", "other")


@dataclass(frozen=True)
class Question:
    """A question: its number within the prompt, the questions that must hold before it counts, its category and finer category."""

    number: int
    parents: tuple[int, ...]
    category: str
    detail: str
    text: str


@dataclass(frozen=True)
class Item:
    """A prompt with its questions, in the file's order."""

    name: str
    prompt: str
    questions: tuple[Question, ...]

    @property
    def missing_parents(self) -> list[int]:
        numbers = {q.number for q in self.questions}
        return sorted({p for q in self.questions for p in q.parents} - numbers)


@dataclass(frozen=True)
class Bench:
    """All prompts by item_id, what is odd in the file, and the (item, question) of its first row, which the official code skips."""

    items: dict[str, Item]
    sha256: str
    first: tuple[str, int]
    oddities: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> dict[str, str]:
        return {name: item.prompt for name, item in self.items.items()}

    def official(self) -> tuple[dict[str, Item], list[str]]:
        """What compute_dpg_bench.py scores, and the item_ids that it leaves out.

        It skips the first row of the file (issue 61 of TencentQQGYLab/ELLA), and gives up on a prompt that has a question under one that
        is not there.
        """
        name, number = self.first
        cut = self.items | {name: _without(self.items[name], number)}
        kept = {name: item for name, item in cut.items() if item.questions and not item.missing_parents}
        return kept, [name for name in cut if name not in kept]


def _without(item: Item, number: int) -> Item:
    return replace(item, questions=tuple(q for q in item.questions if q.number != number))


def load(path: Path) -> Bench:
    """Reads the questions.

    What the official code can live with (a parent that is not there, a circle of parents, a number given twice) is named in `oddities`.

    Raises:
        UserError: a column, a number or a question is missing, a category is unknown, or a prompt has two texts.
    """
    texts: dict[str, str] = {}
    questions: dict[str, dict[int, Question]] = {}
    oddities: list[str] = []
    first = None
    for where, row in _rows(path):
        name, text = row["item_id"].strip(), row["text"]
        if not SAFE_ID.fullmatch(name) or not text.strip():
            raise UserError(f"{where}: item_id {name!r} with text {text[:40]!r}; expected a name fit for a file, and a prompt")
        if texts.setdefault(name, text) != text:
            raise UserError(f"{where}: {name} has another text than above; a prompt has one")
        question = _question(row, where)
        mine = questions.setdefault(name, {})
        if question.number in mine:
            oddities.append(f"{name}: question {question.number} is given twice, the last one counts")
        mine[question.number] = question
        first = first or (name, question.number)
    if first is None:
        raise UserError(f"{path}: no questions; expected one a row")
    items = {name: Item(name, texts[name], tuple(mine.values())) for name, mine in questions.items()}
    for item in items.values():
        if item.missing_parents:
            oddities.append(f"{item.name}: depends on questions that are not there: {', '.join(map(str, item.missing_parents))}")
        if circle := _circle(item):
            oddities.append(f"{item.name}: question {circle} depends on itself")
    return Bench(items, file_sha256(path), first, oddities)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if lacking := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
                raise UserError(f"{path}: columns missing: {', '.join(lacking)}; expected DPG-Bench's dpg_bench.csv")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if any(row[c] is None for c in COLUMNS):
                    raise UserError(f"{where}: fewer values than columns")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); expected DPG-Bench's dpg_bench.csv") from error


def _question(row: dict[str, str], where: str) -> Question:
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(p) for p in row["dependency"].split(","))
    except ValueError as error:
        raise UserError(f"{where}: proposition_id and dependency must be whole numbers ({error})") from error
    detail = row["tuple"].split("(")[0].strip()
    category = detail.split("-")[0].strip()
    if category not in CATEGORIES:
        raise UserError(f"{where}: tuple {row['tuple'][:60]!r} is of category {category!r}; expected {', '.join(CATEGORIES)}")
    text = row["question_natural_language"].strip()
    if not text:
        raise UserError(f"{where}: question_natural_language is empty")
    return Question(number, tuple(p for p in parents if p != 0), category, detail, text)


def _circle(item: Item) -> int | None:
    """A question that is its own ancestor, if there is one."""
    parents = {q.number: set(q.parents) for q in item.questions}
    left = dict(parents)
    while ready := [n for n, above in left.items() if not above & left.keys()]:
        for number in ready:
            del left[number]
    return next(iter(left), None)
