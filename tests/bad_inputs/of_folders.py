"""Cases of folders and files that are written: nothing foreign is replaced, a full disk loses nothing, two runs do not collide."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from apex import export, sample, theory, train
from apex.data import cache, embeddings, latents, prompts, shards, world
from apex.data.latents import load_cache
from apex.files import write_atomic
from apex.kinds import RUN
from apex.pipeline import load_backbone
from apex.pretrain import autoencoder, codec, t5, text_encoder
from evaluators.journal import Journal
from evaluators.pretrain import __main__ as pretrain
from paper_tables import build as tables
from paper_tables import collect
from tests.bad_inputs.case import Case, Command
from tests.paper_tables import conftest as synthetic
from workflows import lock, reference, tune

Make = Callable[[Path], Callable[[], Any]]
FOREIGN = (
    r"{name}: found {what}, expected no folder, an empty one or .* alone; nothing was changed: move it away, or write to another folder"
)


# ------------------------------------------------------------------------------------------------- what is written


def once(make: Callable[[Path], None]) -> Callable[[], Path]:
    """A folder that is made at the first call."""

    @functools.cache
    def made() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="apex-cases-"))
        make(folder)
        return folder

    return made


@once
def small(folder: Path) -> None:
    """A pipeline of untrained networks, shards, their cache, a profile, images of noise and a trained run."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    from apex.pretrain import denoiser

    torch.manual_seed(0)
    tokenizer, pipeline = t5.build_tokenizer(), folder / "pipeline"
    levels = len(autoencoder.CONFIG["block_out_channels"])
    sizes = autoencoder.CONFIG | {"block_out_channels": [8] * levels, "norm_num_groups": 4, "latent_channels": 4}
    AutoencoderKL(**sizes, sample_size=32).save_pretrained(pipeline / "vae")
    t5.build_encoder(len(tokenizer), width=16, layers=1).save_pretrained(pipeline / "text_encoder")
    denoiser.build_sana(4, 32 // 2 ** (levels - 1), 16, width=32, layers=2).transformer.save_pretrained(pipeline / "transformer")
    tokenizer.save_pretrained(pipeline / "tokenizer")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0).save_pretrained(pipeline / "scheduler")
    values = {
        "profile": "tiny", "pipeline": str(pipeline), "data": {"scenes": 8}, "methods": ["fm"], "nfe": [1],
        "prompts": {"per_task": 1, "images_per_prompt": 1}, "budget": {"forward_equivalents": 12},
        "train": {"batch_size": 2, "warmup_steps": 1, "log_every": 1},
    }  # fmt: skip
    (folder / "profile.yaml").write_text(yaml.safe_dump(values))
    shards.write_world(folder / "shards", scenes=8, resolution=32, seed=0)
    latents.build(pipeline, folder / "shards", folder / "cache")
    for call in (sampling(folder / "images"), training(folder / "run", folder)):
        call()


def sampling(out: Any, *more: str) -> Command:
    return Command(
        sample.main,
        ("--config", PROFILE, "--row", "noise", "--nfe", 1, "--out", out, *more),
    )


def training(out: Path, folder: Path | None = None) -> Command:
    folder = folder or small()
    return Command(train.main, ("--config", folder / "profile.yaml", "--row", "fm", "--cache", folder / "cache", "--out", out))


@once
def _profile(folder: Path) -> None:
    """A profile whose references need no network."""
    values = {"profile": "tiny", "prompts": {"per_task": 1, "images_per_prompt": 1}}
    (folder / "profile.yaml").write_text(yaml.safe_dump(values))


PROFILE = _profile() / "profile.yaml"


# ------------------------------------------------------------------------------------------------- what stands there


def photo(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / "cat.jpg")


def a_file(path: Path) -> None:
    path.write_text("years of work")


def nested(folder: Path) -> None:
    photo(folder / "2019" / "summer")


def others_record(folder: Path) -> None:
    folder.mkdir()
    (folder / "made.json").write_text('{"made": "by something else"}')


def broken_record(folder: Path) -> None:
    folder.mkdir()
    (folder / "made.json").write_text("{")


def external(folder: Path) -> None:
    """Images of another generator in GenEval's layout."""
    row = {"prompt": "a red circle", "tag": "colors"}
    prompts.write_layout(folder, 0, row, [np.zeros((8, 8, 3), np.uint8)])


def repository(folder: Path) -> None:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def linked_file(path: Path) -> None:
    (path.parent / "target").write_text("mine")
    path.symlink_to(path.parent / "target")


def own(name: str, also: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    """A folder that the suite made before, and with `also` something in it."""

    def make(folder: Path) -> None:
        shutil.copytree(small() / name, folder)
        if also:
            also(folder)

    return make


def note(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def into(there: Callable[[Path], None], command: Callable[[Path], Callable[[], Any]], name: str = "out") -> Make:
    """The case: `there` makes what stands at `name`, and `command` writes to it."""

    def make(folder: Path) -> Callable[[], Any]:
        there(folder / name)
        return command(folder / name)

    return make


def foreign(kind: str, name: str, what: str, there: Callable[[Path], None], command: Callable[[Path], Callable[[], Any]]) -> Case:
    return Case(kind, name, into(there, command), FOREIGN.format(name="out", what=what))


def images_are_there(folder: Path, _: Any) -> None:
    made = json.loads((folder / "out" / "made.json").read_text())
    assert made["row"] == "noise" and len(list((folder / "out").glob("*/samples/0000.png"))) == 6


def stays_a_link(folder: Path, _: Any) -> None:
    assert (folder / "out").is_symlink() and json.loads((folder / "target" / "made.json").read_text())["row"] == "noise"
    assert sorted(path.name for path in folder.iterdir()) == ["out", "target"]


def linked_own(path: Path) -> None:
    own("images")(path.parent / "target")
    path.symlink_to(path.parent / "target")


def two_sets(folder: Path) -> Callable[[], Any]:
    photo(folder / "unseen")
    return sampling(folder / "{split}", "--split", "test", "unseen")


SAMPLE = "a folder of apex.sample"
SAMPLED = [
    foreign(SAMPLE, "photos", "a folder without made.json", photo, sampling),
    foreign(SAMPLE, "photos two folders down", "a folder without made.json", nested, sampling),
    foreign(SAMPLE, "a file", "a file", a_file, sampling),
    foreign(SAMPLE, "a link to a file", "a file", linked_file, sampling),
    foreign(SAMPLE, "a link to nothing", "a broken link", dangling, sampling),
    foreign(SAMPLE, "a repository", "a folder without made.json", repository, sampling),
    foreign(SAMPLE, "images of another generator", "a folder without made.json", external, sampling),
    foreign(SAMPLE, "a made.json of something else", "a made.json that is not this suite's", others_record, sampling),
    foreign(SAMPLE, "a made.json that is no JSON", "a made.json that is not this suite's", broken_record, sampling),
    foreign(SAMPLE, "notes among its images", "notes.txt", own("images", note), sampling),
    Case(SAMPLE, "the second of two sets", two_sets, r"unseen: found a folder without made\.json"),
    Case(SAMPLE, "nothing there", lambda folder: sampling(folder / "out"), None, images_are_there),
    Case(SAMPLE, "an empty folder", into(Path.mkdir, sampling), None, images_are_there),
    Case(SAMPLE, "images of an earlier call", into(own("images"), sampling), None, images_are_there, ("out",)),
    Case(SAMPLE, "a link to images of an earlier call", into(linked_own, sampling), None, stays_a_link, ("target", "out")),
]


def marked_by_snakemake(folder: Path) -> None:
    own("run")(folder)
    (folder / ".snakemake_timestamp").touch()


def run_is_there(folder: Path, _: Any) -> None:
    assert export.read_run(folder / "out")[1]["row"] == "fm"


TRAIN = "a folder of apex.train"
TRAINED = [
    foreign(TRAIN, "photos", "a folder without made.json", photo, training),
    foreign(TRAIN, "a file", "a file", a_file, training),
    foreign(TRAIN, "a pipeline", "a folder without made.json", own("pipeline"), training),
    foreign(
        TRAIN, "images of the suite", r"00000/metadata\.jsonl and \d+ more that this suite does not write there", own("images"), training
    ),
    foreign(TRAIN, "a cache of the suite", r"captions\.json and 1 more that this suite does not write there", own("cache"), training),
    foreign(TRAIN, "notes in an earlier run", "notes.txt", own("run", note), training),
    foreign(TRAIN, "other weights in an earlier run", r"photos/cat\.jpg", own("run", lambda f: photo(f / "photos")), training),
    Case(TRAIN, "an earlier run", into(marked_by_snakemake, training), None, run_is_there, ("out",)),
]


def rendering(out: Path) -> Command:
    return Command(shards.main, ("world", "--scenes", 2, "--resolution", 16, "--out", out))


def caching(out: Path) -> Command:
    return Command(cache.main, ("--pipeline", small() / "pipeline", "--data", small() / "shards", "--out", out))


def embedding(out: Path) -> Command:
    return Command(embeddings.main, ("--pipeline", small() / "pipeline", "--cache", small() / "cache", "--out", out))


def coding(out: Path) -> Command:
    return Command(codec.main, ("--data", small() / "shards", "--steps", 1, "--decoder-steps", 0, "--batch", 2, "--out", out))


def texting(out: Path) -> Command:
    return Command(text_encoder.main, ("--steps", 1, "--batch", 2, "--out", out))


def detecting(out: Path) -> Command:
    return Command(pretrain.main, ("detector", "--steps", 1, "--batch", 16, "--out", out))


def drawn_by_a_teacher(folder: Path) -> None:
    """As apex.data.synthesise leaves it: a teacher's images, which took hours."""
    own("shards")(folder)
    (folder / "made.json").write_text('{"teacher": "0123"}')


def others_index(folder: Path) -> None:
    folder.mkdir()
    (folder / "index.json").write_text('{"wids_version": 1}')


def with_photos(folder: Path) -> None:
    photo(folder / "text_encoder")


DATA = "a folder of data or networks"
OF_DATA = [
    foreign(DATA, "shards into photos", "a folder without index.json", photo, rendering),
    foreign(DATA, "shards over a teacher's images", "made.json", drawn_by_a_teacher, rendering),
    foreign(DATA, "shards over an index of something else", "a index.json that is not this suite's", others_index, rendering),
    foreign(DATA, "a cache over shards", r"a folder without made\.json", own("shards"), caching),
    foreign(DATA, "a cache with notes", "notes.txt", own("cache", note), caching),
    foreign(DATA, "embeddings over a cache", r"captions\.json and 1 more that this suite does not write there", own("cache"), embedding),
    foreign(DATA, "a codec into photos", "a folder without made.json", photo, coding),
    foreign(DATA, "a codec over a file", "a file", a_file, coding),
    Case(DATA, "a text encoder into photos", into(with_photos, texting), r"text_encoder: found a folder without made\.json, expected"),
    foreign(DATA, "an evaluator's network into photos", "a folder without made.json", photo, detecting),
    foreign(DATA, "an evaluator's network over a run", ".* that this suite does not write there", own("run"), detecting),
    Case(DATA, "shards again", into(own("shards"), rendering), None, lambda f, _: None, ("out",)),
    Case(DATA, "a cache again", into(own("cache"), caching), None, lambda f, _: load_cache(f / "out"), ("out",)),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- committed results


@once
def results(folder: Path) -> None:
    synthetic.build(folder / "results", {("real", 0): 0.9, ("apex", 1): 0.6}, images=True)
    (folder / "profile.yaml").write_text(synthetic.PROFILE)


def committing(out: Path) -> Command:
    folder = results()
    return Command(reference.main, ("--config", folder / "profile.yaml", "--results", folder / "results", "--out", out))


def committed(also: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(results() / "results" / "records", folder / "records")
        for name in ("tables/world.md", "figures/index.html", "claims/front.rst", "metrics.csv", "tune/tuning.html"):
            synthetic.write(folder / name, "made again after this")
        if also:
            also(folder)

    return make


def with_theory(folder: Path) -> Callable[[], Any]:
    (folder / "new").mkdir()
    write_atomic(folder / "new" / "theory.json", "{}")
    synthetic.write(folder / "theory" / "proof.tex", "mine")
    call = committing(folder / "out")
    return Command(call.main, (*call.arguments, "--theory", folder / "new"))


def adopting(out: Path) -> Command:
    return Command(tune.main, ("--adopt", "--results", out.parent / "tune", "--tuned", out.parent / "tuned.yaml", "--reference", out))


def tuned_into(there: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> Callable[[], Any]:
        synthetic.write_tuning(folder / "tune")
        (folder / "tuned.yaml").write_text("the old choice")
        there(folder / "out")
        return adopting(folder / "out")

    return make


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: synthetic.write(folder / name, "mine")


def choice_is_there(folder: Path, _: Any) -> None:
    assert json.loads((folder / "out" / "tuning.json").read_text())["methods"]
    assert "order: 1" in (folder / "tuned.yaml").read_text()


def records_are_there(folder: Path, _: Any) -> None:
    assert (folder / "out" / "records/apex/nfe1/seed0/test/geneval.json").is_file()


REFERENCE = "the committed reference"
OF_REFERENCE = [
    foreign(REFERENCE, "notes", "notes.txt", committed(note), committing),
    foreign(REFERENCE, "a folder of its owner's", r"paper/draft\.tex", committed(text("paper/draft.tex")), committing),
    foreign(REFERENCE, "a record that is no JSON file", r"records/x\.txt", committed(text("records/x.txt")), committing),
    foreign(REFERENCE, "a file", "a file", a_file, committing),
    Case(REFERENCE, "a theory folder with a proof", with_theory, r"theory: found proof\.tex, expected no folder", writes=("out",)),
    Case(REFERENCE, "tuning over notes", tuned_into(lambda f: (f.mkdir(), note(f))), r"out: found notes\.txt, expected no folder"),
    Case(REFERENCE, "tuning where nothing is", tuned_into(lambda f: None), None, choice_is_there, ("tuned.yaml",)),
    Case(REFERENCE, "where nothing is", lambda f: committing(f / "out"), None, records_are_there),
    Case(REFERENCE, "an earlier one", into(committed(), committing), None, records_are_there, ("out",)),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- a full disk


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A refusal by the system itself: every write beyond `size` bytes of a file fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full(size: int = 0) -> Iterator[None]:
    """ENOSPC when a file's content is to reach the disk."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch("os.fsync", refuse):
        yield


def without_room(call: Callable[[], Any], size: int, how: Callable[[int], Any] = no_file_above) -> Callable[[], Any]:
    def tried() -> Any:
        with how(size):
            return call()

    return tried


def too_full(
    name: str, command: Callable[[Path], Callable[[], Any]], there: Callable[[Path], None] | None = None, *, size: int = 100,
    what: str = "out", how: Callable[[int], Any] = no_file_above, writes: tuple[str, ...] = (),
) -> Case:  # fmt: skip
    """There is no room for what `command` writes; what `there` made must stay, and nothing else may lie there."""

    def make(folder: Path) -> Callable[[], Any]:
        if there:
            there(folder / "out")
        return without_room(command(folder / "out"), size, how)

    found = "a full disk" if how is full else "a limit on the size of files"
    return Case(
        "no room on the disk", name, make, rf"{what}: cannot be written: found {found}, expected room for it; nothing", None, writes
    )


def file_of(content: bytes) -> Callable[[Path], Callable[[], Any]]:
    return lambda out: Command(lambda: write_atomic(out, content))


def checkpoint(out: Path) -> Callable[[], Any]:
    def save() -> None:
        from apex.files import atomic_file

        with atomic_file(out) as file:
            torch.save({"a": torch.zeros(50_000), "b": [torch.zeros(9)]}, file)

    return Command(save)


def exporting(out: Path) -> Callable[[], Any]:
    def save() -> None:
        from apex.files import atomic_folder

        backbone = load_backbone(small() / "pipeline" / "transformer", dtype=torch.float32)
        with atomic_folder(out, RUN) as folder:
            backbone.transformer.save_pretrained(folder / "transformer", safe_serialization=True)

    return Command(save)


def journal(out: Path) -> Callable[[], Any]:
    """The answers that fit are kept, and the next call goes on with them."""

    def answer() -> None:
        with Journal(out, "judge", {"model": "x"}) as kept:
            for number in range(50):
                kept.add(str(number), "yes" * 20)

    return Command(answer)


def collecting(out: Path) -> Callable[[], Any]:
    return Command(collect.main, ("--results", results() / "results", "--out", out))


def building(out: Path) -> Callable[[], Any]:
    return Command(tables.main, ("--results", results() / "results", "--out", out))


def rendering_prompts(out: Path) -> Callable[[], Any]:
    return Command(world.main, ("--prompts", out))


def proving(out: Path) -> Callable[[], Any]:
    return Command(theory.main, ("--out", out))


NO_ROOM = [
    too_full("a file", file_of(bytes(1000)), a_file),
    too_full("a file, at the end of writing", file_of(b"short"), a_file, how=full),
    too_full("a checkpoint, inside torch.save", checkpoint, a_file, size=4096),
    too_full("a checkpoint, in its last bytes", checkpoint, a_file, size=201_000),
    too_full("an export, inside safetensors", exporting, own("run"), size=4096),
    too_full("shards", rendering, own("shards"), size=4096),
    too_full("a cache, in its parts", caching, own("cache"), size=1000, what=r"00000\.safetensors"),
    too_full("a cache, at the end of a part", caching, own("cache"), what=r"00000\.safetensors", how=full),
    too_full("embeddings, inside safetensors", embedding, None, size=1000),
    too_full("images", sampling, own("images"), size=100, what=r"0000\.png"),
    too_full("a record of images", sampling, own("images"), how=full, what=r"0000\.png"),
    too_full("a journal of a judge's answers", journal, None, size=500, what=r"judge-\w+\.jsonl", writes=("out",)),
    too_full("metrics.csv", collecting, a_file, size=500),
    too_full("tables", building, None, size=500, what=r"\w+\.\w+"),
    too_full("prompt files", rendering_prompts, None, size=500, what=r"\w+\.jsonl"),
]


# ------------------------------------------------------------------------------------------------- two runs


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Without what `lock.hold` leaves in the process."""
    import signal

    before = signal.getsignal(signal.SIGTERM)
    try:
        with mock.patch.dict(os.environ), mock.patch.object(lock, "PATIENCE", 0.1), mock.patch.object(lock, "_held", []):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def holding(root: Path) -> Callable[[], Any]:
    def hold() -> None:
        with restored():
            lock.hold(root)

    return hold


def held_by_another(folder: Path) -> Callable[[], Any]:
    file = (folder / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    call = holding(folder)

    def hold() -> None:
        with file:
            call()

    return hold


def without_locks(folder: Path) -> Callable[[], Any]:
    def hold() -> str:
        import io

        said = io.StringIO()
        refuse = mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
        with mock.patch.object(lock.fcntl, "flock", refuse), contextlib.redirect_stderr(said):
            holding(folder / "results")()
        return said.getvalue()

    return hold


def warns(folder: Path, said: str) -> None:
    assert "this file system has no locks (No locks available): two runs at once may collide there; start one at a time" in said


def resuming(state: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """A run whose saved state `state` has changed is trained again."""

    def make(folder: Path) -> Callable[[], Any]:
        resume = beside(folder)
        saved = torch.load(resume / "state.pt", weights_only=True)
        torch.save(state(saved), resume / "state.pt")
        return training(folder / "work" / "out")

    return make


def beside(folder: Path) -> Path:
    """What `work/out` goes on from: the state of the small run."""
    (path,) = small().glob(".resume-run-*")
    return Path(shutil.copytree(path, folder / "work" / path.name.replace("-run-", "-out-")))


def split_over(folder: Path) -> Callable[[], Any]:
    resume = beside(folder)
    (resume / "state.pt").unlink()
    (resume / "shares.json").write_text('{"step": 1, "processes": 2}')
    return training(folder / "work" / "out")


def of_two(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"processes": 2}


def of_an_earlier_version(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "processes"}


def went_on(folder: Path, _: Any) -> None:
    run_is_there(folder / "work", None)


TWO = "two runs"
OF_TWO = [
    Case(TWO, "another workflow is at work", held_by_another, r"another snakemake is at work there; wait for it or stop it"),
    Case(TWO, "results that are a file", lambda f: (a_file(f / "results"), holding(f / "results"))[1], r"results: cannot be written: "),
    Case(TWO, "a file system without locks", without_locks, None, warns),
    Case(TWO, "a run that two processes began", resuming(of_two), r"state\.pt: found the state of a run of 2 processes, expected 1: start"),
    Case(TWO, "a run whose weights two processes share", split_over, r"found the state of .* split over processes, expected whole"),
    Case(TWO, "a run that this one began", resuming(dict), None, went_on, ("work",)),
    Case(TWO, "a run of an earlier version", resuming(of_an_earlier_version), None, went_on, ("work",)),
]  # fmt: skip

CASES = [*SAMPLED, *TRAINED, *OF_DATA, *OF_REFERENCE, *NO_ROOM, *OF_TWO]
