"""Which rows a profile expects, so that a cell that was not run says so instead of being absent. No torch.

Names, NFEs and seeds come from the profile (`apex.config`); a method's family and citation are read from its file's text, because
importing it would import torch.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from apex import methods
from apex.config import MATRIX, Checkpoint, Config, External, Published, load
from paper_tables.shared import shared

ATTRIBUTES = ("family", "citation")


@dataclass(frozen=True)
class Declared:
    """A row that the profile names: what it trains, and at which NFE with how many seeds. `command`: the target that runs it."""

    row: str
    method: str
    tuning: str
    seeds: dict[int, int]  # NFE -> number of seeds
    command: str


@dataclass(frozen=True, eq=False)
class Expected:
    """Everything that `snakemake all` and `snakemake full` of one profile would measure.

    Attributes:
        nfe: those that every row has.
        external: the rows that bring only images, by name. checkpoints: those that others trained and that are drawn here.
        published: numbers that other texts state of methods. They stand in the comparison as lines of their own and enter no mean,
            interval, rank or figure: what they were measured with differs.
        tuning: the committed record of what tuning tried, where the profile's settings are from.
        references: rows of no network. evaluators, splits: what is measured, and the prompt sets that are sampled.
        stock_teachers: checkpoints that are the profile's teacher through its own pipeline.
        config: the profile, that records are compared with (`evidence.Wanted`). Captions take what was measured from the records.
    """

    rows: dict[str, Declared]
    nfe: tuple[int, ...]
    teacher_nfe: tuple[int, ...]
    files: tuple[str, ...] = ()
    external: dict[str, External] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    tuning: Path | None = None
    references: tuple[str, ...] = ()
    evaluators: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    stock_teachers: tuple[str, ...] = ()
    config: Config | None = None

    @classmethod
    def of(cls, config: Config) -> Expected:
        rows = {}
        for name in config.all_methods:
            first = "all" if name in config.methods and config.profile != MATRIX else "full"
            count = len({*config.seeds, *config.full.seeds.get(name, [])})
            seeds = dict.fromkeys(config.full.nfe.get(name, []), 1) | dict.fromkeys(config.nfe, count)
            row = config.row(name)
            rows[name] = Declared(name, row.method, row.tuning, seeds, f"snakemake {first}")
        brought = {external.row: external for external in config.external}
        return cls(
            rows,
            tuple(config.nfe),
            tuple(config.teacher_nfe),
            tuple(config.method_paths),
            brought,
            config.checkpoint_rows,
            tuple(config.published),
            Path("results", "reference", config.profile, "tune", "tuning.json"),
            tuple(config.references),
            tuple(config.evaluators),
            tuple(config.sampled),
            tuple(one.row for one in config.checkpoints if one.pipeline == "teacher" and not (one.lora or one.lora_hub)),
            config,
        )

    def seeds(self, row: str, nfe: int) -> int | None:
        """How many seeds the profile wants of this cell; None where it does not name it."""
        return self.rows[row].seeds.get(nfe) if row in self.rows else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="the profile: rows that it names and that were not run are shown as such")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")


def from_arguments(args: argparse.Namespace) -> Expected | None:
    return read(args.config, *args.set) if args.config else None


@shared
def read(profile: Path, *settings: str) -> Expected:
    """Of a profile's file, with single keys that override it."""
    return Expected.of(load(profile, settings))


# ------------------------------------------------------------------------------ what a method's file says


def described(name: str, files: Sequence[str] = ()) -> dict[str, str]:
    """A method's `family` and `citation` as its file states them; only those that it does. Nothing is imported."""
    place = methods.available(files).get(name, "")
    return dict(_read(Path(place), "")) if place.endswith(".py") else {}


@cache
def _read(path: Path, name: str) -> tuple[tuple[str, str], ...]:
    """The attributes of class `name`, or of the file's METHOD; what a class does not state its bases may."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    modules = {
        alias.asname or alias.name: (node.module or "").rpartition(".")[2]
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if not name:
        stated = [n.value.id for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Name) and _target(n) == "METHOD"]
        if not stated:
            return ()
        name = stated[0]
    if name not in classes:
        sibling = path.parent / f"{modules.get(name, '')}.py"
        return _read(sibling, name) if sibling != path and sibling.is_file() else ()
    found: dict[str, str] = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name) and base.id != name:
            found |= dict(_read(path, base.id))
    for node in classes[name].body:
        if isinstance(node, ast.Assign) and _target(node) in ATTRIBUTES and isinstance(node.value, ast.Constant):
            found[_target(node)] = str(node.value.value)
    return tuple(found.items())


def _target(node: ast.Assign) -> str:
    return node.targets[0].id if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) else ""
