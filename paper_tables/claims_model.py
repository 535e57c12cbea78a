"""What `claims.yaml` may say: a claim, and a model for each kind of test. Unknown keys are refused, in claims and in tests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from apex.errors import UserError
from apex.strict import Strict, explain, parse_yaml, unknown

FILE = Path(__file__).resolve().parent / "claims.yaml"
GROUPS = ("theory", "quality", "efficiency", "compatibility", "ablation")
WORLD, SCALE, PAPER = KINDS = ("world", "scale", "paper")
# Whose verdict a test is; `other`: closed forms, other methods, the paper's tables.
OBJECTIVES = ("apex", "apex-public", "apex-eq25", "other")
PROFILE_AND_TARGET = r"^\w+ \w+$"


class Test(Strict):
    """What every test has."""

    command: ClassVar[str] = ""
    kind: str
    objective: Literal[OBJECTIVES] = Field(description="whose verdict it is: apex, apex-public, apex-eq25, or other")
    reading: str = Field("", description="how the claim is read here")


class _Theory(Test):
    command = "snakemake theory"


class Theory(_Theory):
    check: str


class Alignment(_Theory):
    row: str
    part: str = "whole"
    at_least: float


class _Limit(Strict):
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one(self) -> _Limit:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("found at_least and at_most both or neither, expected one of them")
        return self


class Gradient(_Theory, _Limit):
    row: str


class Measured(Test):
    """A test of what is trained. `next`: the profile and target that decide it; `settings`: what they need changed."""

    next: str = Field(pattern=PROFILE_AND_TARGET, description="profile and target that decide it, such as sana_0_6b full")
    settings: list[str] = Field([], description="KEY=VALUE that the command changes in that profile")


class OfRecords(Measured):
    profile: str | None = Field(None, description="whose results are read, if not the judged profile's")
    backbone: str | None = Field(None, description="class of network; a judged profile of that class is read itself")
    scale: Literal["full"] | None = Field(None, description="full: nothing measured on a world is shown for it")


class _Pair(OfRecords):
    row: str
    nfe: int = Field(ge=1)
    versus: str
    versus_nfe: int | None = Field(None, ge=1)


class Difference(_Pair):
    metric: str
    lower: bool = False


class Ratio(_Pair):
    metric: str
    at_least: float


class Speedup(_Pair):
    at_least: float


class Passes(Speedup):
    pass


class SystemSpeedup(Test):
    command = "snakemake speed"
    at_least: float


class Training(OfRecords):
    row: str
    versus: str
    quantity: list[str] = Field(min_length=1)
    at_least: float


class Diverged(OfRecords, _Limit):
    rows: list[str] = Field(min_length=1)


class Reported(OfRecords):
    row: str
    nfe: int = Field(ge=1)
    printed: str
    metric: str
    at_least: float


class Hours(OfRecords):
    row: str
    at_most: float


class Two(Strict):
    """Two cells of an ablation, each by the settings in which it differs from the grid's own."""

    cell: dict[str, Any]
    versus: dict[str, Any]


class Ablation(Measured, Two):
    grid: str
    elsewhere: list[Two] = Field([], description="pairs of other profiles' grids, for those that lack these cells")


class Audit(Test):
    command = "snakemake audit"
    check: str


class PrintedDifference(Test):
    command = "snakemake audit"
    table: str
    row: str
    versus: str


MODELS: dict[str, type[Test]] = {
    "theory": Theory,
    "alignment": Alignment,
    "gradient": Gradient,
    "difference": Difference,
    "ratio": Ratio,
    "speedup": Speedup,
    "system_speedup": SystemSpeedup,
    "passes": Passes,
    "training": Training,
    "diverged": Diverged,
    "reported": Reported,
    "hours": Hours,
    "ablation": Ablation,
    "audit": Audit,
    "printed_difference": PrintedDifference,
}
OF_RECORDS = tuple(kind for kind, model in MODELS.items() if issubclass(model, OfRecords))
# The kinds of test that each kind of claim may have.
OF_THE_PAPER = ("audit", "printed_difference")
AT_SCALE_ALONE = ("reported", "hours", "system_speedup")
ALLOWED = {
    PAPER: OF_THE_PAPER,
    SCALE: tuple(kind for kind, model in MODELS.items() if issubclass(model, Measured) or kind in AT_SCALE_ALONE),
    WORLD: tuple(kind for kind in MODELS if kind not in (*OF_THE_PAPER, *AT_SCALE_ALONE)),
}


def command(test: dict[str, Any]) -> str:
    """What decides the test, or measures it again."""
    if "next" not in test:
        return MODELS[test["kind"]].command
    profile, target = test["next"].split()
    settings = "".join(f" {shlex.quote(one)}" for one in test.get("settings", []))
    return f"snakemake {target} --configfile workflows/config/{profile}.yaml" + (f" --config{settings}" if settings else "")


class Claim(Strict):
    """One claim of the paper and how it is tested."""

    id: str = Field(pattern=r"^[a-z0-9_]+$", description="its name")
    kind: Literal[KINDS] = Field(description="what can decide it: the world, full scale alone, or the paper's own tables")
    group: Literal[GROUPS] = Field(description="what it is about")
    location: str = Field(min_length=3, description="where the paper says it")
    verbatim: bool = Field(description="whether `says` gives the words as printed")
    says: str = Field(min_length=10, description="the claim")
    confirm: str = Field(min_length=5, description="what would confirm it")
    refute: str = Field(min_length=5, description="what would refute it")
    tests: list[dict[str, Any]] = Field(min_length=1, description="what decides it; see claims_tests.py")


def read(path: Path = FILE) -> list[Claim]:
    """The claims; a test has the keys that its text gives.

    Raises:
        UserError: one line that names the file, the claim and the test.
    """
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, list):
        raise UserError(f"{path}: found {type(values).__name__}, expected a list of claims")
    claims: list[Claim] = []
    for at, value in enumerate(values):
        where = f"{path}: claim {value.get('id', f'number {at + 1}') if isinstance(value, dict) else f'number {at + 1}'}"
        try:
            claim = Claim.model_validate(value)
        except ValidationError as error:
            raise UserError(explain(error, Claim, where)) from None
        if claim.id in [one.id for one in claims]:
            raise UserError(f"{path}: found claim {claim.id} twice, expected different ids")
        for number, test in enumerate(claim.tests, 1):
            _check(claim, test, f"{where}: test {number}")
        claims.append(claim)
    return claims


def _check(claim: Claim, test: dict[str, Any], where: str) -> None:
    kind = test.get("kind")
    if kind not in MODELS:
        raise UserError(f"{where}: {unknown('kind of test', kind, MODELS)}")
    if kind not in ALLOWED[claim.kind] or (claim.kind == WORLD and "scale" in test):
        found = f"{kind} with scale: full" if kind in ALLOWED[claim.kind] else kind
        raise UserError(f"{where}: found {found}, expected one of {', '.join(ALLOWED[claim.kind])} in a claim of kind {claim.kind}")
    try:
        MODELS[kind].model_validate(test)
    except ValidationError as error:
        raise UserError(explain(error, MODELS[kind], f"{where} ({kind})")) from None
