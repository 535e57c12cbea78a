"""The one configuration model: profiles (workflows/config/*.yaml) are read, checked and hashed here.

    python -m apex.config workflows/config/world.yaml                         print the resolved settings
    python -m apex.config workflows/config/world.yaml --row apex              print those of one row
    python -m apex.config --schema workflows/schemas/config.schema.json       write the JSON schema
    python -m apex.config --defaults workflows/schemas/config.defaults.yaml   write every key with its default

Any command takes `--set key=value` (dotted, `--set train.batch_size=32`). A *row* is a line of the
tables: a method, or a named variant of one. Importing this file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from apex import methods
from apex.command import Parser
from apex.errors import UserError, described, place_in_user_code, run_command
from apex.evaluation import Evaluation
from apex.files import write_atomic
from apex.launch import Launch
from apex.launch import read as read_launch
from apex.provenance import digest
from apex.strict import Strict, as_list, blame, check_texts, document, explain, parse_yaml, put, read_text, unknown

ROOT = Path(__file__).resolve().parent.parent
Evaluator = Literal["geneval", "fid", "clip_score", "coverage", "speed", "dpg", "wise"]
OF_THE_WORLD: list[Evaluator] = ["geneval", "fid", "clip_score", "coverage", "speed"]
Reference = Literal["real", "shuffled", "noise", "mean"]
OWN_SETS = ("test", "val", "unseen")
RESERVED_ROWS = ("teacher", *get_args(Reference))
LOOP_ONLY = {"checkpoint_every", "log_every"}  # keys of `train` that change no weight
FETCHED = "results/pretrained/checkpoints/{row}"  # pipeline/ and lora/ of a checkpoint from the hub
NAME = r"^[a-z0-9][a-z0-9._-]*$"
MATRIX = "matrix"  # the profile of all methods on the embedded world; `world` is the quick one
OF_MATRIX = re.compile(r"full|tune|adopt_tuning|ablations|ablation_\w+")  # targets of Snakemake that take it
HUB = r"^([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@[A-Za-z0-9_.-]+)?)?$"
FREE = re.compile(r"description$|(external|checkpoints|published|rows|tuning)\.")  # keys of texts that may have several lines
KEPT = {  # names of folders beside those of profiles, in results/ or in results/reference/
    "reference": "the committed results",
    "pretrained": "networks that are made or fetched",
    "assets": "files of other benchmarks",
    **dict.fromkeys(("theory", "speed", "mixture", "gpu", "geneval_agreement"), "results that belong to no profile"),
}
MOST_SEED = 2**63 - 1
MANY = 10**9  # of scenes, images or steps
METRIC = r"^[a-z][a-z0-9_]*(/[a-z0-9_]+)*$"


Names = Annotated[list[str], BeforeValidator(as_list)]
Counts = Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], BeforeValidator(as_list)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=MOST_SEED)]], BeforeValidator(as_list)]
Evaluators = Annotated[list[Evaluator], BeforeValidator(as_list)]
References = Annotated[list[Reference], BeforeValidator(as_list)]


class FromTeacher(Strict):
    """A training set that the guided teacher draws (`data.source: teacher`)."""

    prompts: str = Field(min_length=1, description="file with a prompt a line, or .jsonl with `prompt` in every line")
    count: int | None = Field(
        None, ge=1, le=MANY, description="images: one of every prompt, then a second of every prompt, ...; null: one of each"
    )
    steps: int = Field(50, ge=1, le=10_000, description="Euler steps")
    guidance: float | None = Field(None, ge=0, le=50, description="of the teacher; null: the profile's `guidance`")


class Data(Strict):
    """Where training images and captions come from."""

    source: str = Field(
        "world",
        min_length=1,
        description="`world` (rendered), `teacher` (drawn by it), or a folder of shards, captioned images or parquet",
    )
    scenes: int = Field(20_000, ge=1, le=MANY, description="scenes to render (source `world` only)")
    resolution: int = Field(32, ge=16, le=4096, multiple_of=8, description="side of a square image, pixels")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="seed of the rendered scenes, or of the teacher's noise")
    captions: Literal["full", "shapes"] = Field("full", description="what captions say (source `world`): all, or the shapes alone")
    embeddings: Literal["memory", "batch", "disk"] = Field(
        "memory",
        description="when captions are encoded: all before training, to memory; each batch's as it comes; once, to files on disk",
    )
    teacher: FromTeacher | None = Field(None, description="what the teacher draws (source `teacher` only)")
    on_error: Literal["fail", "skip"] = Field("fail", description="at a sample or file with a defect: end, or leave it out and count it")
    skip_limit: int = Field(100, ge=0, description="defects that may be skipped, a number (on_error `skip` only)")

    @model_validator(mode="after")
    def _teacher_for_teacher(self) -> Data:
        if (self.source == "teacher") != (self.teacher is not None):
            found, expected = ("teacher", "`teacher: {prompts: FILE}` beside it") if self.teacher is None else (self.source, "teacher")
            raise ValueError(
                f"source: found {found} with{'out' if self.teacher is None else ''} settings of `teacher`, expected {expected}"
            )
        return self

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `teacher` and what is said of skipping where they are not used: hashes of profiles from before they were there stay."""
        values = handler(self)
        unused = set() if self.teacher else {"teacher"}
        if self.on_error == "fail":
            unused |= {"on_error", "skip_limit"}
        return {key: value for key, value in values.items() if key not in unused}


class PromptSet(Strict):
    """The prompts of another benchmark."""

    file: str = Field(min_length=1, description="JSON lines, each with a `prompt`")
    images_per_prompt: int = Field(1, ge=1, le=10_000, description="images of each prompt")


class Prompts(Strict):
    """Prompt sets in GenEval's JSON-lines format, and those of other benchmarks."""

    test: str = Field("apex/data/prompts/world/test.jsonl", description="file of the split that the tables report")
    val: str = Field("apex/data/prompts/world/val.jsonl", description="file of the split to tune on")
    unseen: str = Field("apex/data/prompts/world/unseen.jsonl", description="file of the split with combinations never trained on")
    images_per_prompt: int = Field(4, ge=1, le=10_000, description="images of each prompt")
    per_task: int | None = Field(None, ge=1, le=MANY, description="use only the first so many prompts of each task (`tag`); null: all")
    sets: dict[Annotated[str, Field(pattern=NAME)], PromptSet] = Field(
        {}, description="prompt sets of other benchmarks, by the name that `splits` has"
    )

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `sets` where there are none: hashes of profiles from before they were there stay."""
        values = handler(self)
        return values if self.sets else {key: value for key, value in values.items() if key != "sets"}


class Lora(Strict):
    """Low-rank adaptation (peft); used where a row's tuning is `lora`."""

    rank: int = Field(16, ge=1, le=65_536, description="rank of the update")
    alpha: int | None = Field(None, ge=1, le=MANY, description="scale = alpha / rank; null: alpha = rank, as the public code does")


class Budget(Strict):
    """What a run may spend. One number for every method, so that rows compare at equal cost."""

    forward_equivalents: float = Field(
        1_500_000, gt=0, le=1e18, description="training FLOPs as teacher forward passes of one sample; the loop derives its steps from it"
    )


class Train(Strict):
    """The training loop. What belongs to a method (time distribution, shift, weights) is in the row's `params`."""

    batch_size: int = Field(64, ge=1, le=1_000_000, description="samples per forward pass of one process")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit: AdamW's moments in 8 bits, a quarter of their memory; needs torchao, and on a GPU a C compiler"
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="AdamW, at the end of warm-up")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.99], min_length=2, max_length=2, description="AdamW")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW, decoupled")
    warmup_steps: int = Field(100, ge=0, le=MANY, description="optimiser steps of linear warm-up")
    decay: Literal["none", "linear", "sqrt", "cosine"] = Field("none", description="learning rate from warm-up to the end of the budget")
    max_grad_norm: float = Field(1.0, ge=0, le=1e9, description="clip of the gradient's global norm; 0: none")
    ema: float = Field(0.99, ge=0, le=1, description="decay of the averaged weights; 0: none; 1: as the method says")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the forward passes; weights that are trained stay fp32")
    frozen: Literal["fp32", "bf16"] = Field(
        "fp32", description="what is not trained is kept in: teacher, base of LoRA, text encoder; bf16 with precision bf16 alone"
    )
    gradient_accumulation: int = Field(1, ge=1, le=1_000_000, description="forward-backward passes per optimiser step")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    checkpoint_every: float = Field(60.0, gt=0, le=1e9, description="seconds between two resume states")
    log_every: int = Field(20, ge=1, le=MANY, description="optimiser steps between two lines of log.csv")

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Without `optimizer` where it is AdamW and not asked for by name: hashes of runs from before it was there stay."""
        values = handler(self)
        return values if self.optimizer != "adamw" or info.exclude_unset else {k: v for k, v in values.items() if k != "optimizer"}


class Sampling(Strict):
    """Few-step sampling of distilled rows. The grid travels with the export."""

    sigmas: dict[int, list[Annotated[float, Field(gt=0, le=1)]]] = Field(
        {1: [1.0], 2: [1.0, 0.6], 4: [1.0, 0.85, 0.6, 0.3]},
        description="time grid per NFE: noise is 1, falling; the end, 0, is implied; an NFE without one has equal steps",
    )
    mode: Literal["few", "any", "multi"] | None = Field(
        None, description="few: fresh noise between steps; any: jump to the next time; multi: Euler; null: the method's own"
    )
    batch_size: int = Field(100, ge=1, le=1_000_000, description="images per forward pass")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="weights and arithmetic of text encoder and velocity network")

    @field_validator("sigmas", mode="before")
    @classmethod
    def _keep_defaults(cls, given: Any) -> Any:
        """A profile names only the grids that it changes."""
        return cls.model_fields["sigmas"].default | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _grids(self) -> Sampling:
        for nfe, grid in self.sigmas.items():
            if nfe < 1 or len(grid) != nfe or grid != sorted(set(grid), reverse=True):
                raise ValueError(f"sigmas of NFE {nfe}: found {grid}, expected {nfe} falling values in (0, 1]")
        return self


class Row(Strict):
    """A line of the tables that is trained: a method with settings of its own."""

    method: str = Field(description="a file of apex/methods, `apex-eq25` for apex_eq25.py")
    tuning: Literal["full", "lora"] = Field("full", description="which weights are trained")
    lora: Lora = Field(Lora(), description="for tuning `lora`")
    params: dict[str, Any] = Field({}, description="settings of the method; what is not named is tuned, or has the method's default")
    train: Train = Field(Train(), description="changes to the profile's `train`: only the keys named here count")
    tuned: bool = Field(True, description="start from the settings that tuning chose for the method (`tuned`)")


class Candidate(Strict):
    """Settings of a method that `snakemake tune` tries."""

    params: dict[str, Any] = Field({}, description="settings of the method; what is not named has the method's default")
    train: Train = Field(Train(), description="changes to the profile's `train`: only the keys named here count")


Candidates = Annotated[list[Candidate], Field(min_length=1, max_length=4)]


class Tuning(Strict):
    """`snakemake tune`: the same effort for every method, on the validation prompts."""

    forward_equivalents: float | None = Field(None, gt=0, description="training budget of every candidate; null: the profile's budget")
    nfe: int = Field(1, ge=1, le=10_000, description="network evaluations at which GenEval chooses")
    candidates: dict[str, Candidates] = Field({}, description="at most four settings by method; the first are the published ones")


class Full(Strict):
    """What `snakemake full` runs beside `snakemake all`."""

    methods: Names = Field([], description="more rows, with the profile's seeds and NFEs")
    seeds: dict[str, Seeds] = Field({}, description="more seeds, by row")
    nfe: dict[str, Counts] = Field({}, description="more NFEs, by row; at the first seed")


class External(Strict):
    """A folder of images in GenEval's layout (NNNNN/metadata.jsonl, NNNNN/samples/*.png), scored as a row of its own."""

    row: str = Field(pattern=NAME, description="name in the tables")
    images: str = Field(min_length=1, description="the folder")
    nfe: int = Field(ge=0, le=10_000, description="network evaluations per image; 0 where it has no meaning")
    source: str = Field("", description="where the images come from, for the reader")


class Checkpoint(Strict):
    """A published few-step model: a stock pipeline as its users call it, with the profile's prompts, seeds and evaluators."""

    row: str = Field(pattern=NAME, description="name in the tables")
    hub: str = Field("", pattern=HUB, description="`owner/name`, or `owner/name@revision`, of the model hub")
    pipeline: str = Field("", description="its folder in diffusers' layout, in the place of `hub`; `teacher`: the profile's own")
    nfe: Counts = Field(min_length=1, description="steps of its sampler")
    lora_hub: str = Field("", pattern=HUB, description="`owner/name[@revision]` of a LoRA for it")
    lora: str = Field("", description="the LoRA's folder, in the place of `lora_hub`")
    lora_file: str = Field("", pattern=r"^([A-Za-z0-9_.-]+\.safetensors)?$", description="the LoRA's file in it")
    scheduler: dict[str, Any] = Field(
        {}, description="`class` of diffusers and what it changes of the published settings; none: as published"
    )
    call: dict[str, Any] = Field({}, description="arguments of the pipeline's call, such as guidance_scale; else the pipeline's own")
    source: str = Field("", description="where it is from, for the reader")

    @model_validator(mode="after")
    def _one_place(self) -> Checkpoint:
        if bool(self.hub) == bool(self.pipeline):
            raise ValueError("hub and pipeline: expected one of the two")
        if (self.lora_hub and self.lora) or bool(self.lora_hub or self.lora) != bool(self.lora_file):
            raise ValueError("lora_hub, lora and lora_file: expected a place, one of the first two, and a file, or none of the three")
        if self.scheduler and not isinstance(self.scheduler.get("class"), str):
            raise ValueError("scheduler: found no class, expected the name of a scheduler of diffusers")
        if taken := sorted({"num_inference_steps", "height", "width", "generator", "output_type", "prompt"} & set(self.call)):
            raise ValueError(f"call: found {taken[0]}, which the suite sets (nfe, data.resolution, seeds, prompts)")
        return self

    @property
    def folders(self) -> list[Path]:
        """Of its pipeline and, where it has one, of its LoRA: fetched or given."""
        fetched = Path(FETCHED.format(row=self.row))
        pipeline = fetched / "pipeline" if self.hub else locate(self.pipeline)
        lora = fetched / "lora" if self.lora_hub else locate(self.lora) if self.lora else None
        return [pipeline, *([lora] if lora else [])]

    @property
    def words(self) -> str:
        """Where it is from, in words."""
        lora = f" with {self.lora_file} of {self.lora_hub or self.lora}" if self.lora_file else ""
        return self.source or f"{self.hub or self.pipeline}{lora}"


class Published(Strict):
    """A number that a text states of a method. It stands in the tables as published, with its source, apart from what was measured."""

    row: str = Field(min_length=1, max_length=60, description="name in the tables; not that of a row that is measured")
    nfe: int = Field(ge=0, le=10_000, description="network evaluations per image; 0 where it has no meaning")
    metric: str = Field(
        pattern=METRIC,
        description="as in metrics.csv: geneval/overall, fid, clip_score, speed/latency_b1_s, ...; or another benchmark's name",
    )
    value: float = Field(description="as printed, in the unit of the metric")
    source: str = Field(min_length=3, description="where it is printed: text, table, row")
    setting: str = Field(
        "", description="what it was measured on: network, data, resolution, machine; what makes it another number than ours"
    )


class Pretraining(Strict):
    """How `snakemake pretrained` makes the teacher and the evaluators' networks from nothing (source `world`)."""

    scenes: int = Field(80_000, ge=1, le=MANY, description="scenes to render for it")
    codec_steps: int = Field(3000, ge=1, le=MANY, description="optimiser steps of the latent codec")
    decoder_steps: int = Field(5000, ge=0, le=MANY, description="then of its decoder alone, for the same latents")
    text_encoder_steps: int = Field(800, ge=1, le=MANY, description="optimiser steps of the text encoder")
    teacher_steps: int = Field(16_000, ge=1, le=MANY, description="optimiser steps of the teacher")
    evaluator_steps: int | None = Field(
        None, ge=1, le=MANY, description="optimiser steps of each evaluator's network; null: its own default"
    )
    batch_size: int = Field(64, ge=1, le=1_000_000, description="samples per step of the teacher")
    parts: str = Field("", description="a pipeline whose codec and text encoder are taken as they are; empty: both are made")
    family: Literal["sana", "qwen_image"] = Field("sana", description="architecture family of the teacher's transformer")
    width: int = Field(128, ge=32, le=65_536, multiple_of=32, description="channels of the teacher's transformer")
    layers: int = Field(4, ge=1, le=1_000, description="blocks of the teacher's transformer")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="seed of scenes, weights and batches")


class Config(Strict):
    """A profile: everything that `snakemake all` needs to know."""

    profile: str = Field(json_schema_extra={"pattern": NAME}, description="names the folder of results, results/<profile>")
    description: str = Field("", description="one sentence for the reader")
    pipeline: str = Field("apex/pretrained/world", min_length=1, description="the teacher, in diffusers' pipeline layout")
    hub: str = Field(
        "",
        pattern=HUB,
        description="`owner/name`, or `owner/name@revision`, of the model hub: `pipeline` is fetched from there when it is missing",
    )
    data: Data = Data()
    prompts: Prompts = Prompts()
    method_files: Names = Field(
        [], description="methods outside the package: Python files, relative to the profile's folder; `my_method.py` is `my-method`"
    )
    methods: Names = Field(["apex", "apex-eq25", "fm"], description="rows to train: methods, or names under `rows`")
    rows: dict[Annotated[str, Field(pattern=NAME)], Row] = Field({}, description="rows with settings of their own")
    seeds: Seeds = Field([0], min_length=1, description="of distillation and of sampling noise")
    nfe: Counts = Field([1, 2, 4], min_length=1, description="network evaluations per image of trained rows")
    teacher_nfe: Counts = Field([1, 25, 50], description="Euler steps of the guided teacher's rows")
    guidance: float = Field(2.5, ge=0, le=50, description="of the teacher's sampling: uncond + w (cond - uncond); 1: none")
    references: References = Field([*get_args(Reference)], description="rows that no network makes: the ceiling and the floors")
    evaluators: Evaluators = Field(OF_THE_WORLD, description="what is measured")
    splits: dict[str, Evaluators] = Field(
        {"test": OF_THE_WORLD, "unseen": ["geneval"]},
        description="prompt sets to sample (test, val, unseen, or of `prompts.sets`), and which of `evaluators` score each",
    )
    evaluation: Evaluation = Evaluation()
    budget: Budget = Budget()
    train: Train = Train()
    launch: str = Field(
        "", description="accelerate's configuration for each training on several GPUs, workflows/accelerate/*.yaml; '': one process"
    )
    sampling: Sampling = Sampling()
    pretraining: Pretraining = Pretraining()
    tuned: str = Field("", description="file of settings by method that `snakemake tune` chose; empty: the methods' defaults")
    tuning: Tuning = Tuning()
    full: Full = Full()
    ablations: str = Field("", description="file of the ablations that `snakemake ablations` runs; empty: none")
    external: list[External] = Field([], description="folders of images to score beside the rows")
    checkpoints: list[Checkpoint] = Field([], description="published few-step models to draw and score beside the rows")
    published: list[Published] = Field([], description="numbers that texts state of methods, shown apart from what was measured")
    _origin: str = PrivateAttr("configuration")
    _given: tuple[str, ...] = PrivateAttr(())  # keys that the command line has set
    _said: str = PrivateAttr("--set")

    @field_validator("profile")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(NAME, name) or name.endswith(".") or len(name) > 64:
            raise ValueError(f"found {name!r}, expected a name of a-z, 0-9, `_`, `-` and, within it, `.`, of at most 64 characters")
        if name in KEPT:
            raise ValueError(f"found {name!r}, expected another name: results/{name} and results/reference/{name} hold {KEPT[name]}")
        return name

    def blame(self, message: str) -> str:
        """A fault that begins with a key, with where its value is from: the profile's file or the command line."""
        return blame(message, self._origin, self._given, self._said)

    @model_validator(mode="after")
    def _fetched_into_the_results(self) -> Config:
        place = f"results/pretrained/{self.profile}/pipeline"
        if self.hub and self.pipeline != place:
            raise ValueError(f"pipeline: found {self.pipeline} with hub {self.hub}, expected {place}, where it is fetched to")
        return self

    @model_validator(mode="after")
    def _splits_are_there(self) -> Config:
        if taken := sorted(set(self.prompts.sets) & set(OWN_SETS)):
            raise ValueError(f"prompts.sets: found {taken[0]}, a prompt set of the profile's own; choose another name")
        known = [*OWN_SETS, *self.prompts.sets]
        for name in self.splits:
            if name not in known:
                raise ValueError(f"splits: {unknown('prompt set', name, known)}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        known = self.known_methods()
        for name, row in self.rows.items():
            if name in RESERVED_ROWS:
                raise ValueError(f"rows.{name}: this name is kept for a reference row; choose another")
            if row.method not in known:
                raise ValueError(f"rows.{name}.method: {unknown('method', row.method, known)}")
        for name in self.methods:
            if name not in self.rows and name not in known:
                raise ValueError(f"methods: {unknown('method', name, [*known, *self.rows])}")
        for name in self.full.methods:
            if name not in self.rows and name not in known:
                raise ValueError(f"full.methods: {unknown('method', name, [*known, *self.rows])}")
        for key in ("seeds", "nfe"):
            for name in getattr(self.full, key):  # a row that a call leaves out (`--config methods=apex`) may stand here
                if name not in self.rows and name not in known:
                    raise ValueError(f"full.{key}: {unknown('row', name, [*known, *self.rows])}")
        for name in self.tuning.candidates:
            if name not in known:
                raise ValueError(f"tuning.candidates: {unknown('method', name, known)}")
        _no_repeats("full.methods", self.full.methods)
        for key in ("methods", "seeds", "nfe", "teacher_nfe", "references", "evaluators"):
            _no_repeats(key, getattr(self, key))
        brought = [*(e.row for e in self.external), *(c.row for c in self.checkpoints)]
        _no_repeats("rows", [*self.methods, *RESERVED_ROWS, *brought])
        measured = {*self.all_methods, *self.rows, *RESERVED_ROWS, *brought}
        for number in self.published:
            if number.row in measured:
                raise ValueError(
                    f"published: {number.row!r} is a row that is measured; name it apart, such as {number.row + ' (published)'!r}"
                )
        _no_repeats("published", [f"{one.metric} of {one.row} at NFE {one.nfe}" for one in self.published])
        return self

    def known_methods(self) -> list[str]:
        """Names of the methods, by their files; none is imported."""
        try:
            return list(methods.available(self.method_paths))
        except UserError as error:
            raise ValueError(str(error)) from None

    @property
    def method_paths(self) -> list[str]:
        return [str(locate(file)) for file in self.method_files]

    @property
    def pipeline_path(self) -> Path:
        return locate(self.pipeline)

    def prompts_file(self, split: str) -> str:
        """The prompt set's file as the profile writes it."""
        return self.prompts.sets[split].file if split in self.prompts.sets else getattr(self.prompts, split)

    def prompts_path(self, split: str) -> Path:
        return locate(self.prompts_file(split))

    @property
    def tuning_budget(self) -> float:
        """Forward-equivalents of every candidate of `snakemake tune`."""
        return self.tuning.forward_equivalents or self.budget.forward_equivalents

    def images_per_prompt(self, split: str) -> int:
        return self.prompts.sets[split].images_per_prompt if split in self.prompts.sets else self.prompts.images_per_prompt

    @property
    def sampled(self) -> list[str]:
        """The prompt sets that one of `evaluators` scores; images are made of these."""
        return [split for split, names in self.splits.items() if set(names) & set(self.evaluators)]

    @property
    def all_methods(self) -> list[str]:
        """The rows of `methods` and those that `snakemake full` adds."""
        return list(dict.fromkeys([*self.methods, *self.full.methods]))

    @property
    def checkpoint_rows(self) -> dict[str, Checkpoint]:
        own = {"pipeline": self.pipeline}
        return {one.row: one.model_copy(update=own) if one.pipeline == "teacher" else one for one in self.checkpoints}

    def tuned_settings(self) -> dict[str, Candidate]:
        """What the file `tuned` says, by method.

        Raises:
            UserError: the file is missing or is not as `snakemake tune` writes it.
        """
        if not self.tuned:
            return {}
        path = locate(self.tuned)
        try:
            return _read_tuned(read_text(path), str(path)).methods
        except OSError:
            raise UserError(self.blame(f"tuned: found no file {path}; `snakemake tune` makes it, or leave `tuned` empty")) from None
        except ValidationError as error:
            raise UserError(explain(error, Tuned, str(path))) from None

    def row(self, name: str) -> Row:
        """Settings of a trained row as written; `UserError` where there is no such row or method."""
        if name in self.rows:
            return self.rows[name]
        if name not in (known := self.known_methods()):
            raise UserError(f"{self._origin}: {unknown('row', name, [*self.rows, *known])}")
        return Row(method=name)

    def run_config(self, name: str) -> RunConfig:
        """Everything that one training run depends on, the profile's settings and the row's own merged."""
        row = self.row(name)
        tuned = self.tuned_settings().get(row.method, Candidate()) if row.tuned else Candidate()
        changes = {key: getattr(train, key) for train in (tuned.train, row.train) for key in train.model_fields_set}
        train = self.train.model_copy(update=changes)
        if train.frozen == "bf16" and train.precision != "bf16":
            raise UserError(
                self.blame(f"train.frozen: found bf16 with precision {train.precision}, expected precision bf16 too (row {name})")
            )
        return RunConfig(
            row=name,
            method=row.method,
            method_files=self.method_paths,
            variant="" if name == row.method else name.removeprefix(f"{row.method}-"),
            tuning=row.tuning,
            lora=row.lora if row.tuning == "lora" else None,
            params=tuned.params | row.params,
            train=train,
            budget=self.budget,
            data=self.data_of_runs,
            pipeline=self.pipeline,
        )

    @property
    def data_of_runs(self) -> Data:
        """`data` with the teacher's guidance filled in."""
        teacher = self.data.teacher
        if teacher is None or teacher.guidance is not None:
            return self.data
        return self.data.model_copy(update={"teacher": teacher.model_copy(update={"guidance": self.guidance})})

    def launched(self) -> Launch:
        """How its trainings start. Raises `UserError` where accelerate's file is not there or cannot be launched."""
        return read_launch(locate(self.launch), self.blame("launch")) if self.launch else Launch()

    def run_hash(self, name: str, *, teacher: bool = True) -> str:
        """Identity of a run but for its seed: what its weights depend on. With `teacher`, the teacher's files count too."""
        run = self.run_config(name).model_dump(
            mode="json", exclude={"row": True, "variant": True, "method_files": True, "train": LOOP_ONLY}
        )
        run["code"] = methods.source_digest(run["method"], self.method_paths)
        if self.launch:  # as many batches in a step
            run["processes"] = self.launched().processes
        if made := self.data.teacher:  # what else its images depend on
            run["images"] = {"prompts": fingerprint(locate(made.prompts)), "precision": self.sampling.precision}
        return digest(run | ({"teacher": fingerprint(self.pipeline_path)} if teacher else {}))

    def as_profile(self) -> dict[str, Any]:
        """All settings, to be written as a profile that means the same."""
        values = self.model_dump()  # JSON would make text of the keys of `sampling.sigmas`
        for name, row in self.rows.items():
            values["rows"][name]["train"] = row.train.model_dump(exclude_unset=True)  # the rest is the profile's
        for name, candidates in self.tuning.candidates.items():
            for k, candidate in enumerate(candidates):
                values["tuning"]["candidates"][name][k]["train"] = candidate.train.model_dump(exclude_unset=True)
        return values

    def hash(self) -> str:
        """Identity of the settings that change numbers; not of the lists that choose which numbers are made."""
        keep = {"pipeline", "data", "prompts", "rows", "guidance", "budget", "train", "sampling"}
        values = self.model_dump(mode="json", include=keep, exclude={"train": LOOP_ONLY, "rows": {"__all__": {"train": LOOP_ONLY}}})
        tuned = {name: one.model_dump(mode="json", exclude_unset=True) for name, one in self.tuned_settings().items()}
        return digest(values | {"tuned": tuned} | ({"processes": self.launched().processes} if self.launch else {}))


class Tuned(Strict):
    """The file `tuned`."""

    methods: dict[str, Candidate]


@lru_cache(maxsize=16)
def _read_tuned(text: str, where: str) -> Tuned:
    """The content of such a file, which every row asks for."""
    return Tuned.model_validate({"methods": parse_yaml(text, where) or {}})


class RunConfig(Strict):
    """The resolved settings of one trained row (see `Config.run_config`)."""

    row: str
    method: str
    method_files: list[str]
    variant: str
    tuning: Literal["full", "lora"]
    lora: Lora | None
    params: dict[str, Any]
    train: Train
    budget: Budget
    data: Data
    pipeline: str


# ------------------------------------------------------------------------------------------ reading


def default_profile(targets: Iterable[str]) -> str:
    """The profile of a call of Snakemake with these targets that names none."""
    return MATRIX if any(map(OF_MATRIX.fullmatch, targets)) else "world"


def load(path: str | Path, overrides: Iterable[str] = (), said: str = "--set") -> Config:
    """Reads and checks a profile. Its `method_files` are relative to its folder, or to the working directory.

    Args:
        path: a YAML file.
        overrides: `key=value` strings, the key dotted, the value YAML: `train.batch_size=32`, `methods=apex,fm`.
        said: the option that `overrides` are from, as messages name it.

    Raises:
        UserError: one line naming file, key, what was found and what is expected.
    """
    path = Path(path)
    written = _read_profile(path)
    values, given = dict(written), []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            for _, fault in check_texts(override, FREE):
                raise UserError(f"{said}: {fault}")
            raise UserError(f"{said} {override}: expected key=value, such as train.batch_size=32")
        value = parse_yaml(text, f"{said} {key}")
        try:
            put(values, key, value)
        except ValueError as error:
            raise UserError(f"{said} {key}: {error}") from None
        given.append(key)
    for key, fault in check_texts(values, FREE):
        raise UserError(blame(f"{key}: {fault}", str(path), given, said))
    if "method_files" not in given:
        values["method_files"] = _beside(path, values.get("method_files"))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        text = explain(error, Config, str(path), given, said=said)
        if given and text.startswith(f"{path}: ") and _faults(error).isdisjoint(_faults(written)):
            text = f"{path} with {said} {' '.join(given)}: {text.removeprefix(f'{path}: ')}"
        raise UserError(text) from None
    config._origin, config._given, config._said = str(path), tuple(given), said
    return config


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_text(path), str(path))
    except FileNotFoundError:
        found = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has: {', '.join(found)}" if found else ""
        raise UserError(f"{path}: no such configuration file{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give the file of a profile") from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else "a list" if isinstance(values, list) else repr(values)[:60]
        raise UserError(f"{path}: found {found}, expected keys and values, such as `profile: world`")
    return values


def _beside(profile: Path, files: Any) -> Any:
    """`method_files` as written in a profile, those that lie relative to its folder with that folder."""
    try:
        files = as_list(files)
    except ValueError:
        return files  # the model says what is wrong
    if not isinstance(files, list):
        return files
    return [str(place) if isinstance(file, str) and (place := profile.parent / file).is_file() else file for file in files]


def _faults(of: ValidationError | dict[str, Any]) -> set[tuple[Any, ...]]:
    """Places and messages of a validation error, or of what is wrong with a profile's values by themselves."""
    if isinstance(of, dict):
        try:
            Config.model_validate(of)
        except ValidationError as error:
            return _faults(error)
        return set()
    return {(fault["loc"], fault["msg"]) for fault in of.errors()}


def check_params(config: Config, rows: Iterable[str] | None = None) -> None:
    """Checks that the method of every row (or of `rows`) can be imported and takes its `params`.

    Does nothing where torch is not installed.

    Raises:
        UserError: the first fault, in one line that names the file and the key.
    """
    for fault in method_faults(config, rows).values():
        raise fault


def method_faults(config: Config, rows: Iterable[str] | None = None) -> dict[str, UserError]:
    """Row -> why its method cannot run; empty where all can, and where torch is not installed."""
    if find_spec("torch") is None:
        return {}
    faults: dict[str, UserError] = {}
    for name in dict.fromkeys([*config.all_methods, *config.rows] if rows is None else rows):
        row = config.row(name)
        try:
            method = methods.get(row.method, config.method_paths)
            method.Params.model_validate(config.run_config(name).params)
            if row.tuning not in method.tunings:
                why = f": {method.no_lora}" if row.tuning == "lora" and method.no_lora else ""
                expected = f"{' or '.join(method.tunings)} for {row.method}{why}"
                faults[name] = UserError(config.blame(f"rows.{name}.tuning: found {row.tuning}, expected {expected}"))
        except UserError as error:
            faults[name] = error
        except ValidationError as error:
            text = explain(error, method.Params, config._origin, config._given, f"rows.{name}.params.", config._said)
            faults[name] = UserError(f"{text} (settings of {methods.where(method)})")
        except (Exception, SystemExit) as error:  # whatever the method's own checks raise
            place = place_in_user_code(error) or methods.where(method)
            faults[name] = UserError(f"{place}: {described(error)}; mend it, or remove the row {name!r}")
            faults[name].__cause__ = error
    return faults


def locate(path: str | Path) -> Path:
    """A path from the working directory, or where it is not there, from the folder that holds the package."""
    path = Path(path)
    return ROOT / path if not path.is_absolute() and not path.exists() and (ROOT / path).exists() else path


def fingerprint(folder: Path) -> str:
    """Short SHA-256 of a folder's (or a file's) content; of large files size, begin and end count. "missing" where there is none."""
    files = sorted(f for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else [folder] if folder.is_file() else []
    return digest([(str(f.relative_to(folder)), _sample(f, f.stat().st_size, f.stat().st_mtime_ns)) for f in files]) if files else "missing"


@lru_cache(maxsize=4096)
def _sample(file: Path, size: int, mtime_ns: int, limit: int = 1 << 26) -> str:
    with file.open("rb") as stream:
        content = stream.read(limit)
        if size > limit:
            stream.seek(-(1 << 20), 2)
            content += stream.read() + str(size).encode()
    return hashlib.sha256(content).hexdigest()


def _no_repeats(key: str, values: list) -> None:
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{key}: found {', '.join(twice)} twice, expected different entries")


def method_models() -> dict[str, type[BaseModel]]:
    """The settings of every method that lies in the package, by name. Imports torch."""
    folder = Path(methods.__file__).parent
    return {name: methods.get(name).Params for name, place in methods.available().items() if Path(place).parent == folder}


def schema() -> str:
    """The JSON schema of a profile, for editors and for people; a row's `params` by its method."""
    found = Config.model_json_schema()
    found["$defs"]["Row"]["allOf"] = []
    for name, model in method_models().items():
        found["$defs"][f"params-{name}"] = model.model_json_schema()
        chosen = {"properties": {"method": {"const": name}}, "required": ["method"]}
        settings = {"properties": {"params": {"$ref": f"#/$defs/params-{name}"}}}
        found["$defs"]["Row"]["allOf"].append({"if": chosen, "then": settings})
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | found, indent=2) + "\n"


def defaults() -> str:
    """Every key with its default and its description, as YAML."""
    text = (
        "# Every key of a profile, its default and what it means. Written by `python -m apex.config --defaults`; a test fails on drift.\n"
    )
    text += "".join(f"{line}\n" for line in document(Config))
    about: dict[str, type[BaseModel]] = {"An entry under `rows`": Row, "An entry of `external`": External}
    about |= {"`data.teacher`": FromTeacher, "An entry of `published`": Published, "An entry under `tuning.candidates`": Candidate}
    about |= {f"`params` of a row whose method is `{name}`": model for name, model in method_models().items()}
    for title, model in about.items():
        text += f"\n# {title}:\n" + "".join(f"#   {line}\n" for line in document(model))
    return text


def main() -> None:
    parser = Parser("apex.config", __doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a profile to check and print")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--row", help="print the settings of this row alone")
    parser.add_argument("--schema", type=Path, help="write the JSON schema here")
    parser.add_argument("--defaults", type=Path, help="write the commented defaults here")
    args = parser.parse_args()
    if args.schema:
        write_atomic(args.schema, schema())
    if args.defaults:
        write_atomic(args.defaults, defaults())
    if args.file:
        config = load(args.file, args.set)
        check_params(config)
        shown = config.run_config(args.row).model_dump(mode="json") if args.row else config.as_profile()
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120), end="")
    elif not (args.schema or args.defaults):
        parser.error("give a profile, --schema or --defaults")


if __name__ == "__main__":
    sys.exit(run_command(main))
