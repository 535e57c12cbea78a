# Reads and checks the configuration before any job; what every rule shares.

import json
import os
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from snakemake.io import contains_wildcard

from apex.ablations import CELL as CELL_ROW
from apex.ablations import Plan as AblationPlan
from apex.config import FETCHED, fingerprint, load, locate, method_faults
from apex.errors import UserError
from apex.kinds import OF_RULES
from apex.provenance import digest
from evaluators.systems.known import systems
from workflows.lock import hold
from workflows.plan import Plan, arguments, configured, overrides
from workflows.progress import Costs
from workflows.screen import install

BASEDIR = Path(workflow.basedir)
ENVIRONMENT = "../envs/suite.yaml"

# What comes before a user's own value, for every job. PATH and PYTHONPATH: jobs find this interpreter and these packages without an
# activated environment, from any folder. GLIBC_TUNABLES: glibc gives memory back to the system between two training steps, and the next step
# faults it in again, page by page; pages of 2 MB make that cheaper and change no number. Of a tunable that is named twice the last counts.
_before = {"PATH": Path(sys.executable).parent, "PYTHONPATH": BASEDIR, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
for _name, _value in _before.items():
    os.environ[_name] = ":".join(filter(None, [str(_value), os.getenv(_name)]))
os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a job's log, and what `tee` shows of it, is of this second


def end(error):
    """One line and Snakemake's own exit code for what stopped it."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


try:
    _called = configured(BASEDIR, workflow.config_settings.configfiles, workflow.config_settings.config, sys.argv)
    _file, _settings, CONFIG = _called.file, _called.settings, _called.config
    workflow.config_settings.configfiles = [_file.absolute()]  # jobs on a cluster call Snakemake with other targets
    CARD = _called.card  # `snakemake plan --config card=h100`
    SYSTEMS, TIMED = systems(), _called.systems  # `snakemake speed --config systems=flux-schnell`
    PLAN, ABLATIONS, LAUNCH = Plan(CONFIG), AblationPlan(CONFIG), CONFIG.launched()
    if not {"plan", "measure", "measure_row"} & set(sys.argv):  # these come before there are data or prompts
        _called.check(PLAN)
    for _folder in (Path(PLAN.root), *Path(PLAN.root).parents):
        if _folder.exists() and not _folder.is_dir():
            raise UserError(
                f"{PLAN.root}: cannot be written: {_folder} is a file; move it, or run in another folder (--directory)"
            )
except UserError as error:
    end(error)

MADE_HERE = CONFIG.pipeline == f"{PLAN.pretrained}/pipeline"  # the teacher is an output of this workflow
MARKER = CONFIG.pipeline_path / "transformer" / "config.json"
TEACHER = "made here" if MADE_HERE else fingerprint(CONFIG.pipeline_path)


def given(path):
    """A file or folder of the user's as an input; its time does not count. One whose name looks like a wildcard (`{x}`) cannot be
    an input of Snakemake's: it is left out, and the rule's parameters name it."""
    return [] if contains_wildcard(path) else ancient(path)


def one_of(names):
    """A wildcard's pattern that matches these names alone."""
    return "|".join(map(re.escape, names)) or "(?!)"


def config_arguments(wildcards, output):
    """`--config FILE --set ...`. Snakemake stores no param that is a function of `output`, so a changed command line
    alone makes no job stale: what matters to a job is in its other params."""
    return arguments(_file, overrides(_settings))


def start_command(wildcards, output):
    """What starts a training; as many processes as its hash says."""
    return LAUNCH.command


def embeddings_of(config, row, folder):
    """The captions' embeddings in the precision of a row's text encoder; nothing where the profile does not keep them on disk."""
    return folder.format(dtype=config.run_config(row).train.frozen) if config.data.embeddings == "disk" else []


def skipping(wildcards, output):
    """What to do with samples that have a defect, for the command. Snakemake stores no param that is a function of `output`, so a cache
    that was made before the option existed is not made again."""
    data = CONFIG.data
    return ["--on-error", "skip", "--skip-limit", str(data.skip_limit)] if data.on_error == "skip" else []


def run_embeddings(wildcards):
    return embeddings_of(CONFIG, wildcards.row, PLAN.embeddings)


def embeddings_argument(wildcards, input):
    """`--embeddings FOLDER`; Snakemake stores no param that is a function of `input`."""
    return ["--embeddings", input.embeddings] if input.embeddings else []


def run_identity(wildcards):
    return CONFIG.run_hash(wildcards.row, teacher=not MADE_HERE)


def candidate_arguments(wildcards, output):
    settings = PLAN.candidate_settings(wildcards.method, int(wildcards.k))
    return arguments(_file, [*overrides(_settings), *settings])


def candidate_config(wildcards):
    settings = PLAN.candidate_settings(wildcards.method, int(wildcards.k))
    return load(_file, [*overrides(_settings), *settings])


def candidate_identity(wildcards):
    return candidate_config(wildcards).run_hash("candidate", teacher=not MADE_HERE)


def candidate_embeddings(wildcards):
    return embeddings_of(candidate_config(wildcards), "candidate", PLAN.embeddings)


def teacher_input(wildcards):
    """A given teacher's content counts, in `params:`, and not its files' times, which a clone sets at random.
    One that is not there is left to `onstart`: Snakemake takes an error here for "no rule makes this" and what exists for good.
    """
    return CONFIG.pipeline if MADE_HERE else given(str(MARKER)) if MARKER.is_file() else []


def network_input(wildcards, group):
    """What a job of these rows loads."""
    if group.suffix == "_references":
        return []
    if group.suffix == "_teacher":
        return teacher_input(wildcards)
    return checkpoint_folders(wildcards.row) if group.suffix == "_checkpoint" else PLAN.run.format(**wildcards)


def network_content(wildcards, group):
    """What a job of these rows loads that is given, by its content."""
    if group.suffix == "_teacher":
        return [TEACHER, str(CONFIG.guidance)]
    return checkpoint_content(wildcards.row) if group.suffix == "_checkpoint" else ""


def point_words(wildcards, group):
    """The rows and NFEs of a job of these rows, and the folder of its network, as options of a command."""
    rows, nfes = group.named(wildcards)
    runs = {"_teacher": CONFIG.pipeline_path, "_references": None, "_checkpoint": None}
    run = runs[group.suffix] if group.suffix in runs else PLAN.run.format(**wildcards)
    return ["--row", *rows, *(["--run", str(run)] if run else []), "--nfe", *nfes]


def checkpoint_folders(row):
    """What a checkpoint's images need: what is fetched is made here; a given folder's content counts, and not its files' times."""
    one, folder = CONFIG.checkpoint_rows[row], FETCHED.format(row=row)
    fetched = [f"{folder}/{part}" for part, hub in (("pipeline", one.hub), ("lora", one.lora_hub)) if hub]
    return [*fetched, CONFIG.pipeline] if MADE_HERE and one.pipeline == CONFIG.pipeline else fetched


def checkpoint_content(row):
    one = CONFIG.checkpoint_rows[row]
    given = [
        TEACHER if folder == CONFIG.pipeline else fingerprint(locate(folder))
        for folder in (one.pipeline, one.lora)
        if folder
    ]
    return one.model_dump_json(exclude={"nfe", "source"}) + "".join(given)


def left_open(template, wildcards, group=None):
    """A path of PLAN with a job's row and wildcards filled in; the rest stays `{nfe}`, `{split}` and the like, for a command."""
    open_names = {name: f"{{{name}}}" for name in ("row", "nfe", "seed", "split", "evaluator")}
    known = {"row": group.rows[0]} if group and group.together and len(group.rows) == 1 else {}
    return template.format(**{**open_names, **known, **wildcards})


def words(chosen):
    """Which evaluators score which prompt set, as words of the command, quoted for the shell."""
    return [shlex.quote(f"{split}={','.join(names)}") for split, names in chosen.items()]


def scores(chosen):
    """The same and, where the profile says it, with what."""
    options = PLAN.options({name for names in chosen.values() for name in names})
    return [*words(chosen), "--options", shlex.quote(json.dumps(options))] if options else words(chosen)


# Ablations: a cell is a row of its own, see apex/ablations.py.
CELL = f"{ABLATIONS.root}/{{cell}}/seed{{seed}}"
JUDGES = ["geneval", *(["coverage"] if "coverage" in CONFIG.evaluators else [])]  # of cells and of candidates
CELL_RECORDS = [f"{CELL}/records/{name}.json" for name in JUDGES]
CELL_PICTURES = f"{CELL}/pictures.zip"
CELL_DATA = f"{ABLATIONS.root}/data/{{data}}"
CELL_EMBEDDINGS = f"{CELL_DATA}/embeddings-{{dtype}}"


def given_sources(wildcards):
    """Where images of a cell's data lie that are given."""
    return [cell.source for cell in ABLATIONS.cells.values() if cell.data == wildcards.data and cell.source]


def cell_source(wildcards):
    """What a cell's latents are of: images that are given, or scenes rendered with other captions."""
    sources = given_sources(wildcards)
    return given(sources[0]) if sources else f"{CELL_DATA}/shards".format(data=wildcards.data)


def cell_cache(wildcards):
    """The latents that a cell trains on: the profile's, or those of other data."""
    data = ABLATIONS.cells[wildcards.cell].data
    return f"{CELL_DATA}/cache".format(data=data) if data else PLAN.cache


def cell_arguments(wildcards, output):
    return arguments(_file, [*overrides(_settings), *ABLATIONS.cells[wildcards.cell].changes])


def cell_config(wildcards):
    return load(_file, [*overrides(_settings), *ABLATIONS.cells[wildcards.cell].changes])


def cell_identity(wildcards):
    return cell_config(wildcards).run_hash(CELL_ROW, teacher=not MADE_HERE)


def cell_embeddings(wildcards):
    """Of the captions that a cell trains on."""
    data = ABLATIONS.cells[wildcards.cell].data
    folder = CELL_EMBEDDINGS.replace("{data}", data) if data else PLAN.embeddings
    return embeddings_of(cell_config(wildcards), CELL_ROW, folder)


def grid_records(name, cells, seeds):
    return [path.format(cell=cell, seed=seed) for cell in cells for seed in seeds for path in CELL_RECORDS]


def again(wildcards):
    """More seeds of a grid's ends and of its control."""
    ends = json.loads(Path(checkpoints.ablation_ends.get(grid=wildcards.grid).output[0]).read_text())
    return grid_records(wildcards.grid, ends, ABLATIONS.found.again)


TRAINED = []  # rows that this call trains
SCORES = []  # rules by which this call scores images
FAULTS = {}  # row -> why its method cannot run


def in_report(path, what):
    """An output that the report shows; the report takes the grids that were run."""
    return report(
        path,
        caption="../report/ablations.rst",
        category="5. Ablations",
        labels={"grid": "{grid}", "as": what},
    )


def kept(folder):
    """results/<folder>, or the committed results/reference/<folder> where it holds nothing."""
    return f"results/{folder}" if any(Path("results", folder).rglob("*.json")) else f"results/reference/{folder}"


def recorded(results):
    """Whether the folder holds result records."""
    return any(Path(results, "records").rglob("*.json"))


def beside(results):
    """The option that compares these results with the committed ones of the profile; nothing if there are none or these are they."""
    return ["--committed", PLAN.reference] if results != PLAN.reference and recorded(PLAN.reference) else []


def words_of(name, *options):
    """The words of a command, `python -m NAME ...`."""
    return ["python", "-m", name, *map(str, options)]


def joined(commands):
    """Commands, each a list of words, as one line for the shell: each runs if the one before it succeeded. Every word is quoted.
    Neighbours of `paper_tables` share one process, which reads the records once.
    As a rule's parameter it stands behind `lambda`: in other texts Snakemake takes braces for wildcards."""
    lines = []
    for shared, group in groupby(commands, lambda words: words[2].startswith("paper_tables.")):
        group = list(group)
        if shared and len(group) > 1:
            steps = [[words[2].removeprefix("paper_tables."), *words[3:]] for words in group]
            group = [
                ["python", "-m", "paper_tables", *steps[0], *(word for step in steps[1:] for word in ("+", *step))]
            ]
        lines += map(shlex.join, group)
    return " && ".join(lines)


def table_commands(results, out=PLAN.root):
    """From the records in `results` to metrics.csv, tables, audit and figures in `out`: the words of each command."""
    about = [*arguments(_file, overrides(_settings)), *beside(results)]
    gallery = ["--gallery", PLAN.gallery] if out == PLAN.root else []  # too large to commit
    return [
        words_of("paper_tables.collect", "--results", results, "--out", f"{out}/metrics.csv"),
        words_of("paper_tables.build", "--results", results, "--out", f"{out}/tables", *about),
        words_of("paper_tables.audit", "--out", f"{out}/audit"),
        words_of("paper_tables.figures", "--results", results, "--out", f"{out}/figures", *gallery, *about),
    ]


def claim_commands(results, out=PLAN.root):
    """From the records in `results` to claims and assumptions in `out`."""
    about, claims = arguments(_file, overrides(_settings)), ["--out", f"{out}/claims"]
    other = f"{BASEDIR}/workflows/config/world_qwen.yaml={kept('world_qwen')}"
    outside = ["--theory", kept("theory"), "--speed", kept("speed"), "--also", other]
    return [
        words_of("paper_tables.claims", *about, "--results", results, *outside, *claims),
        words_of("paper_tables.assumptions", *about, "--results", f"{results}/ablations", *claims),
    ]


def cards_command(results):
    """From the runs and records in `results` to the model cards of this profile."""
    about = arguments(_file, overrides(_settings))
    return words_of("paper_tables.cards", "--results", results, "--out", PLAN.cards, *about)


def reference_commands():
    """What this profile's results have, to the committed reference; then its tables and figures from the whole of it."""
    about, out = arguments(_file, overrides(_settings)), PLAN.reference
    copying = words_of(
        "workflows.reference", *about, "--results", PLAN.root, "--out", out, "--theory", "results/theory"
    )
    grids = words_of(
        "paper_tables.ablations", *about, "--results", f"{out}/ablations", "--out", f"{out}/ablations/tables"
    )
    return [copying, *table_commands(out, out), *([grids] if ABLATIONS.cells else []), *claim_commands(out, out)]


def snakemake_arguments():
    """This call's profile and settings, for a call of Snakemake from within: the words of the command."""
    settings = [f"{key}={json.dumps(value)}" for key, value in _settings.items()]
    about = ["--snakefile", str(BASEDIR / "Snakefile"), "--configfile", str(_file)]
    return [*about, *(["--config", *settings] if settings else [])]


def say_faults():
    for _row, _fault in FAULTS.items():
        print(f"error: row {_row} cannot run: {_fault}", file=sys.stderr, flush=True)


def summarise():
    """What came out, in a few lines, after a call that makes tables, also where all of them were there."""
    if {"all", "full", "tables"} & {one.name for one in workflow.dag.targetrules}:
        about = arguments(_file, overrides(_settings))
        subprocess.run(words_of("paper_tables.summary", "--results", PLAN.root, "--committed", PLAN.reference, *about))


SCREEN = install(summarise) if workflow.is_main_process else None


onstart:
    try:
        hold(Path(PLAN.root))
        _jobs = list(workflow.dag.needrun_jobs())
        # Snakemake empties a job's output folders before it starts the job.
        for _job in _jobs:
            for _output in _job.output if _job.rule.name in OF_RULES else ():
                if _output.is_directory:
                    OF_RULES[_job.rule.name].check(Path(_output))
        _rules = {job.rule.name for job in _jobs}
        _teachers = {"train", "synthesise", "sample_teacher", "time_teacher"}
        if not MADE_HERE and _rules & _teachers and not MARKER.is_file():
            raise UserError(CONFIG.blame(f"pipeline: found no {MARKER}; expected a folder in diffusers' layout"))
        # These have no inputs, so they would run before what the same call still has to make.
        _takes = sorted(_rules & {"tables", "figures", "claims", "cards", "reference"})
        _makes = {file for job in _jobs for file in job.output} & {PLAN.metrics, *PLAN.records(full=True)}
        if _takes and _makes:
            _said = f"{' and '.join(_takes)}: of the records that are there, and this call has {len(_makes)} files yet to make"
            raise UserError(f"{_said}; ask for the others first, then for `snakemake {' '.join(_takes)}`")
        if _lacking := PLAN.unready(
            {Path(file).stem for job in _jobs for file in job.output if file.endswith(".json")}
        ):
            raise UserError(CONFIG.blame(_lacking))
    except UserError as error:
        end(error)
    # A broken method fails its own jobs alone: `keep-going` in profiles/default lets the others run.
    TRAINED.extend(job.wildcards.row for job in _jobs if job.rule.name == "train")
    SCORES.extend(name for name in sorted(_rules) if name.startswith("evaluate"))
    if TRAINED:
        FAULTS.update(method_faults(CONFIG, TRAINED))
    say_faults()
    if SCREEN:
        SCREEN.follow(workflow, Costs(CONFIG, {name: cell.changes for name, cell in ABLATIONS.cells.items()}))


onsuccess:
    if SCREEN:
        SCREEN.finish()
    summarise()


onerror:
    if SCREEN:
        SCREEN.finish()
    # What failed leaves its cells "not run"; what there is stands in the tables. Not after Ctrl-C, which wants an end.
    _said = "".join(Path(file).read_text(errors="replace") for file in log if Path(file).is_file())
    if (TRAINED or SCORES) and "user request" not in _said and any(Path(PLAN.root, "records").rglob("*.json")):
        for _command in table_commands(PLAN.root):
            subprocess.run(_command, stdout=subprocess.DEVNULL)
        print(f"some jobs failed; {PLAN.tables} and {PLAN.figures} hold what there is", file=sys.stderr, flush=True)
    say_faults()
