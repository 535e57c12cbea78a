"""The ablations of a profile: grids of settings around a row, one training run a cell. Plain Python, no Snakemake, no torch.

A profile names a file of them (`ablations: workflows/config/ablations/world.yaml`). A *cell* is a row of the profile with some
settings changed; cells of two grids that are the same are one run. Every grid is a target: `snakemake ablation_<name>`.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from apex.config import NAME, Config, Seeds, locate
from apex.errors import UserError
from apex.strict import Strict, explain, parse_yaml, put, read_text

Settings = dict[str, Any]
# What a cell may change: the row's own keys, and of the profile the training data and the budget.
BUDGET = ("forward_equivalents", "share")
KEYS = re.compile(r"forward_equivalents|share|tuning|data\.captions|data\.source|(params|train|lora)\.[a-z_]+")
DATA = ("data.captions", "data.source")
CELL = "cell"  # the row's name while a cell runs


class Ablation(Strict):
    """A grid of settings around one row."""

    title: str = Field(min_length=1, description="what is varied, for the reader")
    about: str = Field("", description="what the paper says of it, and what stands for what here")
    row: str = Field("apex", pattern=NAME, description="a row of the profile, or a method; its settings are the cell without changes")
    paper: Literal["", "table5", "table6", "table7"] = Field("", description="the paper's table that has the same grid")
    printed: dict[str, dict[Any, dict[str, str | list[str]]]] = Field(
        {}, description="setting -> value -> column of that table -> what stands there (one of a list), where names differ"
    )
    own: Settings = Field({}, description="settings that the row has by itself, so that a cell with them is not run twice")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({}, description="settings to cross, `params.a: [-1.0, 0.5]`")
    cells: list[Settings] = Field([], description="cells beside the grid")
    control: Settings | None = Field(None, description="the cell to compare with; null: the row as it is")

    @model_validator(mode="after")
    def _known_keys(self) -> Self:
        for where in (self.own, self.grid, *self.cells, self.control or {}, self.printed):
            for key in where:
                if not KEYS.fullmatch(key):
                    raise ValueError(
                        f"unknown setting {key!r}; expected forward_equivalents, share, tuning, data.X, params.X, train.X or lora.X"
                    )
        if not self.grid and not self.cells:
            raise ValueError("found neither `grid` nor `cells`, expected one of them")
        return self

    def settings(self) -> list[Settings]:
        """Every cell's settings as written, the grid's in its order; what is `own` is left out, equal cells are one."""
        crossed = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())] if self.grid else []
        found = [self.changed(cell) for cell in (*crossed, *self.cells)]
        found += [self.changed(self.control or {})]
        return [cell for at, cell in enumerate(found) if cell not in found[:at]]

    def changed(self, settings: Settings) -> Settings:
        """Those that the row has not by itself."""
        return {key: value for key, value in settings.items() if key not in self.own or self.own[key] != value}

    def name(self, settings: Settings) -> str:
        """A cell's folder: `apex`, or `apex,a=-0.5,b=1.0`."""
        changed = self.changed(settings)
        return ",".join([self.row, *(f"{key.rpartition('.')[2]}={_text(changed[key])}" for key in sorted(changed))])


def _text(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value))


class Ablations(Strict):
    """The file of a profile's ablations."""

    forward_equivalents: float | None = Field(
        None, gt=0, description="training budget of a cell, where it names none; null: `share` of the profile's budget"
    )
    share: float = Field(1.0, gt=0, le=1, description="share of the profile's budget, if `forward_equivalents` is null")
    nfe: int = Field(1, ge=1, le=10_000, description="network evaluations per image")
    seeds: Seeds = Field([0], min_length=1, description="of every cell")
    again: Seeds = Field([], description="more seeds of the best, the worst and the control cell of every grid")
    grids: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Ablation] = Field({}, description="by name: `snakemake ablation_NAME`")


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        changes: what makes it of the profile, as `key=value`.
        data: names its training data's folder; '' for the profile's own.
        source: where images with captions lie, of data that is not rendered.
    """

    name: str
    changes: tuple[str, ...]
    data: str = ""
    source: str = ""


class Plan:
    """The ablations of a profile with the cells that they share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = f"results/{config.profile}/ablations"
        self.found = read(config)
        self.cells: dict[str, Cell] = {}
        for name, ablation in self.found.grids.items():
            self._know_the_data(ablation)
            for settings in ablation.settings():
                cell = self.cell(ablation, settings)
                if self.cells.setdefault(cell.name, cell) != cell:
                    raise UserError(f"{config.ablations}: grids.{name}: two cells are called {cell.name!r}; name other settings")

    def _know_the_data(self, ablation: Ablation) -> None:
        """The row's own data are the profile's, also where a call or a copy of the profile has changed them."""
        for key in DATA:
            if key in ablation.own:
                ablation.own[key] = getattr(self.config.data, key.removeprefix("data."))

    def cell(self, ablation: Ablation, settings: Settings) -> Cell:
        """The cell of a grid with these settings."""
        name, settings = ablation.name(settings), ablation.changed(settings)
        row = self.config.row(ablation.row).model_dump(mode="json", exclude_unset=True)
        budget = self.budget({key: settings.pop(key) for key in BUDGET if key in settings})
        data = {key: settings.pop(key) for key in DATA if key in settings}
        for key, value in settings.items():
            where, _, last = key.rpartition(".")
            row |= {where: {**row.get(where, {}), last: value}} if where else {last: value}
        rendered = self.config.data.source == "world"
        for key in data:
            if (key == "data.captions") != rendered:
                needs = "the rendered world" if key == "data.captions" else "a profile whose data are files"
                raise UserError(f"{self.config.ablations}: cell {name!r}: {key} needs {needs}, not {self.config.data.source}")
        changes = [f"budget.forward_equivalents={budget!r}", f"rows.{CELL}={json.dumps(row)}"]
        changes += [f"{key}={value}" for key, value in data.items()]
        if "data.source" in data and self.config.data.teacher:
            changes.append("data.teacher=null")  # it goes with `teacher` alone
        return Cell(name, tuple(changes), "-".join(map(_text, data.values())), data.get("data.source", ""))

    def budget(self, settings: Settings) -> float:
        """Forward-equivalents of a cell with these settings."""
        if "share" in settings:
            return settings["share"] * self.config.budget.forward_equivalents
        absolute = settings.get("forward_equivalents", self.found.forward_equivalents)
        return absolute or self.found.share * self.config.budget.forward_equivalents

    def config_of(self, name: str) -> Config:
        """The profile as a cell's run takes it: its row is `CELL`."""
        values = self.config.as_profile()
        for change in self.cells[name].changes:
            key, _, text = change.partition("=")
            put(values, key, parse_yaml(text, name))
        return Config.model_validate(values)

    def names(self, name: str) -> list[str]:
        """The cells of one grid, in its order; the last is the control unless it stands before."""
        ablation = self.found.grids[name]
        return [ablation.name(settings) for settings in ablation.settings()]

    def control(self, name: str) -> str:
        ablation = self.found.grids[name]
        return ablation.name(ablation.control or {})


def read(config: Config) -> Ablations:
    """The file that the profile names; nothing where it names none.

    Raises:
        UserError: one line that names the file and the key.
    """
    if not config.ablations:
        return Ablations()
    path = locate(config.ablations)
    try:
        values = parse_yaml(read_text(path), str(path))
    except OSError:
        raise UserError(config.blame(f"ablations: found no file {path}; expected a file of ablations, or nothing")) from None
    try:
        found = Ablations.model_validate(values or {})
    except ValidationError as error:
        raise UserError(explain(error, Ablations, str(path))) from None
    for name, ablation in found.grids.items():
        try:
            config.row(ablation.row)
        except UserError as error:
            raise UserError(f"{path}: grids.{name}.row: {str(error).partition(': ')[2]}") from None
    return found
