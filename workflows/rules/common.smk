# Reads and checks the configuration before any job; what every rule shares.

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from apex.config import check_params, fingerprint, load
from apex.errors import UserError
from workflows.lock import hold
from workflows.plan import Plan, arguments, overrides, profile_file

BASEDIR = Path(workflow.basedir)
ENVIRONMENT = "../envs/suite.yaml"

# Jobs find this interpreter and these packages without an activated environment, from any folder.
for _name, _folder in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", BASEDIR)):
    os.environ[_name] = os.pathsep.join(filter(None, [str(_folder), os.getenv(_name)]))

try:
    _file, _settings = profile_file(BASEDIR, workflow.config_settings.configfiles, workflow.config_settings.config)
    _file = _file.relative_to(Path.cwd()) if _file.is_relative_to(Path.cwd()) else _file
    CONFIG = load(_file, overrides(_settings))
    PLAN = Plan(CONFIG)
    if _missing := PLAN.missing():
        raise UserError(f"{_file}: {_missing}")
except UserError as error:
    raise WorkflowError(str(error).replace("--set", "--config")) from None

MADE_HERE = CONFIG.pipeline == f"{PLAN.pretrained}/pipeline"  # the teacher is an output of this workflow
TEACHER = "made here" if MADE_HERE else fingerprint(CONFIG.pipeline_path)


def one_of(names):
    """A wildcard's pattern that matches these names alone."""
    return "|".join(map(re.escape, names)) or "(?!)"


def config_arguments(wildcards, output):
    """`--config FILE --set ...`. Snakemake stores no param that is a function of `output`, so a changed command line
    alone makes no job stale: what matters to a job is in its other params."""
    return arguments(_file, overrides(_settings))


def run_identity(wildcards):
    return CONFIG.run_hash(wildcards.row, teacher=not MADE_HERE)


def teacher_input(wildcards):
    """A given teacher's content counts, in `params:`, and not its files' times, which a clone sets at random."""
    if MADE_HERE:
        return CONFIG.pipeline
    marker = CONFIG.pipeline_path / "transformer" / "config.json"
    if not marker.is_file():
        raise WorkflowError(f"{_file}: pipeline: found no {marker}; expected a folder in diffusers' layout")
    return ancient(str(marker))


def timed_input(wildcards):
    return teacher_input(wildcards) if wildcards.row == "teacher" else PLAN.run.format(**wildcards)


def images_of(wildcards, row=None):
    """The point's images with `{split}` left open, for the command."""
    return PLAN.images.format(**{"row": row, "nfe": 0, **wildcards}, split="{split}")


def records_of(wildcards, row=None):
    """The point's records with `{split}` and `{evaluator}` left open, for the command."""
    return PLAN.record.format(**{"row": row, **wildcards}, split="{split}", evaluator="{evaluator}")


onstart:
    try:
        hold(Path(PLAN.root))
        if any(job.rule.name == "train" for job in workflow.dag.needrun_jobs()):
            check_params(CONFIG)
    except UserError as error:
        raise WorkflowError(str(error))
