"""What a profile asks for: rows, points, and the files that `snakemake all` makes. Plain Python, no Snakemake, no torch.

A *point* is a cell of the tables: a row at a number of network evaluations (NFE) and a seed. The paths
of results/<profile>/ are written here once, as templates with Snakemake's wildcards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from apex.command import filled
from apex.config import FREE, Config, External, default_profile, fingerprint, load, locate
from apex.errors import UserError
from apex.evaluation import Options
from apex.gpu import CARDS
from apex.strict import check_texts, parse_yaml, unknown
from evaluators import assets
from evaluators.references import MODULES
from evaluators.systems.known import chosen

JUDGED = ("dpg", "wise")
SPEED = "speed"  # it times a network, not a folder of images: one split, one seed


class Point(NamedTuple):
    row: str
    nfe: int
    seed: int


@dataclass(frozen=True)
class Group:
    """Rows that share a job's shape: one process samples, scores or times all of a job's points, because its start takes longer than a
    point of the world does.

    Attributes:
        suffix: what their rules' names end with. rows: their names; the path of a job's files names one of them.
        nfes: the NFEs of every job; None: a job has one, which its path names, and that is none of `but`.
        together: a job has all the rows.
    """

    suffix: str
    rows: Collection[str]
    nfes: Sequence[int] | None
    together: bool = False
    but: Sequence[int] = ()

    def paths(self, template: str, splits: Iterable[str] = ("{split}",)) -> list[str]:
        """A job's paths by this template. What differs between jobs stays open."""
        rows, nfes = self.rows if self.together else ["{row}"], ["{nfe}"] if self.nfes is None else self.nfes
        return [filled(template, split=split, row=row, nfe=nfe) for split in splits for row in rows for nfe in nfes]

    @property
    def constraints(self) -> dict[str, str]:
        """Patterns of the wildcards that `paths` leaves open."""
        rows, but = ("|".join(map(re.escape, self.rows)) or "(?!)", "|".join(map(str, self.but)))
        found = {"seed": r"\d+"} | ({} if self.together else {"row": rows})
        return found | ({"nfe": rf"(?!(?:{but})/)\d+" if but else r"\d+"} if self.nfes is None else {})

    @property
    def stem(self) -> str:
        """The name of a job's log, up to what is particular to the rule."""
        row = self.suffix.strip("_") if self.together else "{row}"
        return f"{row}-nfe{{nfe}}-seed{{seed}}" if self.nfes is None else f"{row}-seed{{seed}}"

    def named(self, wildcards: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """A job's rows and NFEs."""
        rows = list(self.rows) if self.together else [wildcards["row"]]
        return rows, [wildcards["nfe"]] if self.nfes is None else [str(nfe) for nfe in self.nfes]


class Plan:
    """Files and points of one profile. `root` is results/<profile>, relative to the working directory."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = f"results/{config.profile}"
        self.shards = f"{self.root}/data/shards"
        self.synthesised = f"{self.root}/data/teacher"
        self.cache = f"{self.root}/data/cache"
        self.embeddings = f"{self.root}/data/embeddings-{{dtype}}"
        self.run = f"{self.root}/runs/{{row}}/seed{{seed}}"
        self.images = f"{self.root}/images/{{row}}/nfe{{nfe}}/seed{{seed}}/{{split}}"
        self.record = f"{self.root}/records/{{row}}/nfe{{nfe}}/seed{{seed}}/{{split}}/{{evaluator}}.json"
        self.candidate = f"{self.root}/tune/{{method}}/{{k}}"
        self.features = f"{self.root}/features"
        self.references = f"{self.root}/references/{{split}}/{{evaluator}}.safetensors"
        self.metrics = f"{self.root}/metrics.csv"
        self.tables = f"{self.root}/tables"
        self.audit = f"{self.root}/audit"
        self.claims = f"{self.root}/claims"
        self.cards = f"{self.root}/cards"
        self.calibration = f"{self.root}/calibration"
        self.figures = f"{self.root}/figures"
        self.gallery = f"{self.root}/pictures.html"
        self.reference = f"results/reference/{config.profile}"
        self.pretrained = f"results/pretrained/{config.profile}"

    @property
    def externals(self) -> dict[str, External]:
        return {external.row: external for external in self.config.external}

    def networks(self) -> list[Group]:
        """The rows of networks: of a trained row the compared NFEs share a job, and every further one has its own."""
        config, trained = self.config, self.config.all_methods
        groups = [Group("", trained, config.nfe), Group("_at", trained, None, but=config.nfe)]
        groups += [Group("_teacher", ["teacher"], config.teacher_nfe, together=True)]
        groups += [Group("_checkpoint", list(config.checkpoint_rows), None)]  # each has NFEs of its own
        return [group for group in groups if group.rows and group.nfes != []]

    def drawn(self) -> list[Group]:
        """The rows whose images this suite makes."""
        references = self.config.references
        return [*self.networks(), *([Group("_references", references, [0], together=True)] if references else [])]

    def points(self, full: bool = False) -> list[Point]:
        """Every point that has images: reference rows, the teacher, trained rows, external folders; `full`: with the profile's `full`."""
        config, first = self.config, self.config.seeds[0]
        points = [Point(row, 0, first) for row in config.references]
        points += [Point("teacher", nfe, seed) for nfe in config.teacher_nfe for seed in config.seeds]
        points += [Point(row, nfe, seed) for row in config.methods for nfe in config.nfe for seed in config.seeds]
        points += [Point(one.row, nfe, seed) for one in config.checkpoints for nfe in one.nfe for seed in config.seeds]
        if full:
            points += [Point(row, nfe, seed) for row in config.full.methods for nfe in config.nfe for seed in config.seeds]
            points += [Point(row, nfe, seed) for row, seeds in config.full.seeds.items() for nfe in config.nfe for seed in seeds]
            points += [Point(row, nfe, first) for row, nfes in config.full.nfe.items() for nfe in nfes]
            named = {"teacher", *config.references, *config.all_methods, *self.config.checkpoint_rows}
            points = [point for point in dict.fromkeys(points) if point.row in named]
        return points + [Point(external.row, external.nfe, first) for external in config.external]

    def scored(self) -> dict[str, list[str]]:
        """The evaluators of images, by prompt set; prompt sets without one are left out."""
        config = self.config
        chosen = {split: [e for e in names if e in config.evaluators and e != SPEED] for split, names in config.splits.items()}
        return {split: names for split, names in chosen.items() if names}

    def alone(self) -> list[str]:
        """The evaluators that are jobs of their own: with settings in `evaluation`, or by a judge. They take long, each may fail without
        the others, and a changed setting asks for its own alone."""
        apart = {*self.config.evaluation.options(), *JUDGED}
        return sorted({name for names in self.scored().values() for name in names} & apart)

    def of_renders(self) -> dict[str, list[str]]:
        """By prompt set the evaluators that compare with fresh renders, which are the same for every row."""
        chosen = {split: [name for name in names if name in MODULES and name not in self.alone()] for split, names in self.scored().items()}
        return {split: names for split, names in chosen.items() if names}

    def options(self, evaluators: Iterable[str]) -> Options:
        """The profile's settings of these evaluators. Inception's features have one place: real images are looked at once for all rows."""
        found = {name: options for name, options in self.config.evaluation.options().items() if name in evaluators}
        if "fid" in found and self.config.evaluation.fid.protocol != "world":
            found["fid"]["keep"] = self.features
        return found

    def content(self, evaluator: str) -> list[str]:
        """Fingerprints of what an evaluator's settings name."""
        return [fingerprint(path) for settings in self.config.evaluation.chosen([evaluator]).values() for path in settings.paths()]

    def records(self, full: bool = False) -> list[str]:
        """Every result record of the profile."""
        found = []
        for split, evaluators in self.scored().items():
            points = [
                p for p in self.points(full) if split == "test" or p.row not in self.externals
            ]  # external folders hold the test prompts
            found += [self.record.format(**p._asdict(), split=split, evaluator=e) for p in points for e in evaluators]
        if SPEED in self.config.evaluators:
            timed = [split for split, names in self.config.splits.items() if SPEED in names]
            found += [self.record.format(**p._asdict(), split=split, evaluator=SPEED) for split in timed for p in self.timed(full)]
        return found

    def calibrated(self) -> list[str]:
        """GenEval's calibration on spoiled renders, where the prompts are the world's and `real` is a row to compare with."""
        config = self.config
        of_the_world = config.data.source == "world" and config.evaluation.geneval.detector == "world"
        wanted = of_the_world and "real" in config.references and "geneval" in self.scored().get("test", [])
        return [self.calibration] if wanted else []

    def timed(self, full: bool = False) -> list[Point]:
        """The points whose network is timed: the teacher, trained rows and checkpoints, each at one seed: that at which the row was timed
        before, also by a call for other seeds, else the first."""
        rows = {"teacher", *self.config.all_methods, *self.config.checkpoint_rows}
        points = [p for p in self.points(full) if p.row in rows and p.seed == self.config.seeds[0]]
        before = {row: self.timed_before(row) for row in {point.row for point in points}}
        return [p if before[p.row] is None else p._replace(seed=before[p.row]) for p in points]

    def timed_before(self, row: str) -> int | None:
        """The seed of the row's speed records, the lowest of several; None without any."""
        found = Path(self.root, "records", row).glob(f"nfe*/seed*/*/{SPEED}.json")
        return min((int(path.parts[-3].removeprefix("seed")) for path in found), default=None)

    def candidates(self) -> list[tuple[str, int]]:
        """What `snakemake tune` tries: (method, number), for the methods of the profile's rows."""
        wanted = {self.config.row(name).method for name in self.config.all_methods}
        return [(name, k) for name, found in self.config.tuning.candidates.items() if name in wanted for k in range(len(found))]

    def candidate_settings(self, method: str, k: int) -> list[str]:
        """`key=value` strings that make the candidate a row of its own, named `candidate`, at the budget of tuning."""
        tuning = self.config.tuning
        settings = tuning.candidates[method][k].model_dump(mode="json", exclude_unset=True)
        row = {"method": method, "tuned": False, **settings}
        return [f"budget.forward_equivalents={self.config.tuning_budget!r}", f"rows.candidate={json.dumps(row)}"]

    def missing(self) -> str | None:
        """One line about the first file that the profile names and that is not there."""
        self.config.tuned_settings()  # raises it
        for split in self.config.sampled:
            if not self.config.prompts_path(split).is_file():
                if of_others := assets.at(self.config.prompts_path(split)):
                    assets.locate(of_others)  # raises it
                key = f"prompts.sets.{split}.file" if split in self.config.prompts.sets else f"prompts.{split}"
                return f"{key}: found no file {self.config.prompts_file(split)}; expected JSON lines, each with a `prompt`: docs/evaluators"
        for at, external in enumerate(self.config.external):
            if not Path(external.images).is_dir():
                return f"external.{at}.images: found no folder {external.images}; expected one with NNNNN/metadata.jsonl and NNNNN/samples"
        for at, one in enumerate(self.config.checkpoints):
            for key, folder in (("pipeline", one.pipeline), ("lora", one.lora)):
                if folder and folder != "teacher" and not locate(folder).is_dir():
                    return f"checkpoints.{at}.{key}: found no folder {folder}; expected one in diffusers' layout"
        if (drawn := self.config.data.teacher) and not locate(drawn.prompts).is_file():
            return f"data.teacher.prompts: found no file {drawn.prompts}; expected a prompt a line, or .jsonl with `prompt` in every line"
        if self.config.data.source not in ("world", "teacher") and not Path(self.config.data.source).exists():
            return f"data.source: found nothing at {self.config.data.source}; expected `world`, `teacher` or a path to images with captions"
        return None

    def unready(self, evaluators: Iterable[str]) -> str | None:
        """One line about the first thing that these evaluators need and that is not there."""
        for name, settings in self.config.evaluation.chosen(evaluators).items():
            if lacking := settings.lacks():
                return f"evaluation.{name}.{lacking}"
            for key, asset, given in settings.assets():
                try:
                    assets.find(asset, given or None, f"evaluation.{name}.{key}")
                except UserError as error:
                    return str(error)
        return None


@dataclass(frozen=True)
class Called:
    """What Snakemake was called with.

    Attributes:
        file: of the profile, relative to the working directory where it lies in it.
        settings: of `--config`, without those below.
        card: of `snakemake plan`; '' where none is named. systems: names of those that `snakemake speed` times.
    """

    file: Path
    settings: dict[str, Any]
    card: str
    systems: list[str]
    config: Config

    def check(self, plan: Plan) -> None:
        """Raises `UserError` where a file that the configuration names is not there."""
        if missing := plan.missing():
            raise UserError(self.config.blame(missing))


def configured(basedir: Path, configfiles: list[Path], settings: Mapping[str, Any], targets: Iterable[str] = ()) -> Called:
    """Reads the profile's file with `--config`: the one place where the Snakefile gets its configuration.

    Args:
        basedir: the checkout.
        configfiles: of `--configfile`, at most one.
        settings: of `--config`, as Snakemake has read them.
        targets: the words of the call, among them its targets.

    Raises:
        UserError: one line that names the file or `--config`, and the key.
    """
    for key, fault in check_texts(dict(settings), FREE):
        raise UserError(f"--config {key}: {fault}")
    file, rest = profile_file(basedir, configfiles, settings, targets)
    card, names = str(rest.pop("card", None) or ""), rest.pop("systems", None) or ""
    if card and card not in CARDS:
        raise UserError(f"--config card: {unknown('card', card, CARDS)}")
    try:
        timed = chosen(",".join(map(str, names)) if isinstance(names, list) else names)
    except UserError as error:
        raise UserError(f"--config systems: {error}") from None
    file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return Called(file, rest, card, timed, load(file, overrides(rest), "--config"))


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """`key=value` strings for `apex.config.load` from what stood behind Snakemake's `--config`.

    `methods=apex,fm`, `train='{batch_size: 32}'` and, for keys inside others, `set='train.batch_size=32 budget.forward_equivalents=1e5'`
    or `set='[train.batch_size=32, ...]'` all work, and so does `hub=` (`hub="''"` is the same to Snakemake): the empty text for a key
    that takes a text.
    """
    flat: list[str] = []
    texts = {name for name, field in Config.model_fields.items() if field.annotation is str}

    def read(value: Any) -> Any:
        """Snakemake leaves every scalar inside brackets a string."""
        if isinstance(value, list):
            return [read(item) for item in value]
        if isinstance(value, Mapping):
            return {key: read(item) for key, item in value.items()}
        scalar = parse_yaml(value, "--config") if isinstance(value, str) else value
        return value if isinstance(scalar, list | dict) else scalar

    def walk(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        else:
            if value == "" or (value is None and key in texts):
                value = "''"
            text = "" if value is None else value if isinstance(value, str) else json.dumps(read(value))
            flat.append(f"{key}={text}")

    walk({key: value for key, value in settings.items() if key != "set"}, "")
    one_by_one = settings.get("set")
    if isinstance(one_by_one, Mapping):
        walk(one_by_one, "")
    else:
        # A value may hold spaces: the next setting begins where a word has a `=` behind a key.
        given = one_by_one if isinstance(one_by_one, list) else re.split(r"\s+(?=[\w.-]+=)", str(one_by_one or "").strip())
        for setting in filter(None, map(str, given)):
            if not re.match(r"[^\s=]+=", setting):
                raise UserError(f"--config set: found {setting!r}, expected KEY=VALUE, such as budget.forward_equivalents=2e4")
            flat.append(setting)
    return flat


def profile_file(
    basedir: Path, configfiles: list[Path], settings: Mapping[str, Any], targets: Iterable[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """The profile's file and the settings left: `--configfile` wins, then `--config profile=NAME`; then `apex.config.default_profile`."""
    if len(configfiles) > 1:
        raise UserError(f"--configfile: found {len(configfiles)} files, expected one; a profile is complete in itself")
    if configfiles:
        return configfiles[0], dict(settings)
    rest, folder = dict(settings), basedir / "workflows" / "config"
    name, known = str(rest.pop("profile", default_profile(targets))), sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise UserError(
            f"--config profile: found {name!r}, expected the name of a profile in workflows/config ({', '.join(known)}); "
            "give another file by --configfile"
        )
    return folder / f"{name}.yaml", rest


def arguments(file: Path, changes: list[str]) -> list[str]:
    """What follows a program's name, as words: `--config FILE --set key=value ...`."""
    return ["--config", str(file), *(part for change in changes for part in ("--set", change))]
