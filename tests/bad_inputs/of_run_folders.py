"""Cases of run folders, pipelines, caches and records whose files are damaged, of another type, missing or special."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from apex import fetch
from apex.data.captions import _made
from apex.data.latents import load_cache, load_vae
from apex.export import read_run
from apex.loop import Loop
from apex.pipeline import empty_like
from apex.planning import _from_folder
from apex.stock import load_networks
from apex.text import TextPath, pipeline_class
from evaluators.fid.mjhq import read_meta
from evaluators.images import open_images
from evaluators.networks import load_network
from evaluators.result import read_record
from evaluators.timing import identity
from paper_tables.records import read_made
from tests.bad_inputs.case import Case

WORLD = Path(__file__).parents[2] / "apex" / "pretrained" / "world"
RECIPE = {"format": 1, "base": "pipeline", "mode": "multi", "tuning": "full", "target_time": "none", "sigmas": {"1": [1.0]}}
RUN = {"sampling.json": RECIPE, "made.json": {"format": 1}}
NO_JSON, LIST, NO_UTF8, DEEP = b"{", b"[]", b'{"a": "\xff"}', b"[" * 100_000
FIFO, FOLDER, GONE = "a FIFO", "a folder", None  # instead of content
Content = bytes | str | dict | None


def put(file: Path, content: Content) -> None:
    """Makes `file` hold this content, or be what the word says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if content == FIFO:
        os.mkfifo(file)
    elif content == FOLDER:
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def reads(reader: Callable[[Path], Any], file: str, content: Content, good: dict[str, Content] | None = None) -> Any:
    """The call of a reader on a folder of `good` files, of which `file` holds `content`."""

    def make(folder: Path) -> Callable[[], Any]:
        for name, each in (good or {}).items():
            put(folder / name, each)
        put(folder / file, content)
        return lambda: reader(folder)

    return make


def of_world(reader: Callable[[Path], Any], file: str, content: Content) -> Any:
    """The same on the embedded pipeline; its weights are linked."""

    def make(folder: Path) -> Callable[[], Any]:
        def link(source: str, place: str) -> None:
            shutil.copy(source, place) if Path(source).stat().st_size < 10_000 else os.symlink(source, place)

        shutil.copytree(WORLD, folder / "p", copy_function=link)
        put(folder / "p" / file, content)
        return lambda: reader(folder / "p")

    return make


def saved_state(folder: Path) -> Any:
    """What a run of two processes finds of an earlier one."""
    accelerator = SimpleNamespace(num_processes=2, process_index=0)
    loop = SimpleNamespace(resume=folder, sharded=True, accelerator=accelerator)
    loop.state_file = lambda step=None: "shares.json" if step is None else f"share-{step}.pt"
    return Loop.saved_state(loop)


def in_file(reader: Callable[[Path], Any], name: str) -> Callable[[Path], Any]:
    return lambda folder: reader(folder / name)


RUNS = [
    ("sampling.json is no JSON", "sampling.json", NO_JSON, r"sampling\.json: not JSON .*train the row again"),
    ("sampling.json is a list", "sampling.json", LIST, r"sampling\.json: found a JSON list, expected an object"),
    ("sampling.json is no UTF-8", "sampling.json", NO_UTF8, r"sampling\.json: not JSON .*UTF-8"),
    ("sampling.json is nested 100000 deep", "sampling.json", DEEP, r"sampling\.json: found JSON that is nested too deeply"),
    ("sampling.json is empty", "sampling.json", b"", r"sampling\.json: not JSON"),
    ("sampling.json is a FIFO", "sampling.json", FIFO, r"sampling\.json: found a FIFO, expected a file"),
    ("sampling.json is a folder", "sampling.json", FOLDER, r"sampling\.json: found a folder, expected a JSON file"),
    ("no sampling.json", "sampling.json", GONE, r"sampling\.json: not found"),
    ("a format that is a list", "sampling.json", RECIPE | {"format": []}, r"sampling\.json: format: found \[\], expected 1"),
    ("a format that is an object", "sampling.json", RECIPE | {"format": {}}, r"sampling\.json: format: found \{\}, expected 1"),
    ("a base that is a number", "sampling.json", RECIPE | {"base": 3}, r"sampling\.json: base: found 3, expected the folder"),
    ("a grid that rises", "sampling.json", RECIPE | {"sigmas": {"2": [0.5, 1.0]}}, r"sampling\.json: sigmas: found"),
    ("no mode", "sampling.json", {k: v for k, v in RECIPE.items() if k != "mode"}, r"sampling\.json: mode: found None, expected one of"),
    ("made.json is a text", "made.json", b'"made"', r"made\.json: found a JSON str, expected an object"),
]  # fmt: skip

INDEX = {"_class_name": "SanaPipeline"}
PIPELINES = [
    ("model_index.json is no JSON", reads(pipeline_class, "model_index.json", NO_JSON), r"model_index\.json: not JSON"),
    ("model_index.json is a list", reads(pipeline_class, "model_index.json", LIST), r"model_index\.json: found a JSON list"),
    ("a class that is a list", reads(pipeline_class, "model_index.json", {"_class_name": ["a"]}), r"_class_name: found \['a'\], expected"),
    ("an index of parts that is a list", reads(lambda f: load_networks(f, None), "model_index.json", LIST), r"model_index\.json: "),
    ("a fetched list", reads(lambda f: fetch._needed(f, True, ""), "model_index.json", LIST), r"model_index\.json: found a"),
    ("config.json is a list", of_world(lambda p: empty_like(p / "transformer"), "transformer/config.json", LIST), r"found a JSON list"),
    ("config.json is no UTF-8", of_world(lambda p: empty_like(p / "transformer"), "transformer/config.json", NO_UTF8), r"UTF-8"),
    ("a class of network that is an object", of_world(lambda p: empty_like(p / "transformer"), "transformer/config.json",
      {"_class_name": {}}), r"transformer/config\.json: .*unknown backbone \{\}"),
    ("settings of another type", of_world(lambda p: empty_like(p / "transformer"), "transformer/config.json",
      {"_class_name": "SanaTransformer2DModel", "num_layers": "two"}), r"transformer/config\.json: "),
    ("the codec's config.json is a list", of_world(load_vae, "vae/config.json", LIST), r"vae/config\.json: found a JSON list"),
    ("the codec's class is a list", of_world(load_vae, "vae/config.json", {"_class_name": []}), r"vae/config\.json: _class_name is \[\]"),
    ("tokenizer.json is no JSON", of_world(TextPath, "tokenizer/tokenizer.json", NO_JSON), r"tokenizer: cannot be read, it is damaged"),
    ("tokenizer_config.json is a list", of_world(TextPath, "tokenizer/tokenizer_config.json", LIST), r"tokenizer: cannot be read"),
    ("an estimate of a list", of_world(lambda p: _from_folder(p, 32), "vae/config.json", LIST), r"vae/config\.json: found a JSON list"),
]  # fmt: skip


def timed(run: Path) -> Any:
    """Who `evaluators.speed` says is timed."""
    return identity(run, "apex", 1, SimpleNamespace(profile="world", hash=lambda: "0"))


CACHE: dict[str, Content] = {"latents.safetensors": b"x", "captions.json": {"captions": []}}
OTHERS = [
    ("a cache whose made.json is no JSON", reads(load_cache, "made.json", NO_JSON, CACHE), r"made\.json: not JSON .*apex\.data\.cache"),
    ("a cache whose made.json is a list", reads(load_cache, "made.json", LIST, CACHE), r"made\.json: found a JSON list"),
    ("a cache of a schema that is a list", reads(load_cache, "made.json", {"schema": [1]}, CACHE), r"made\.json: schema: found \[1\]"),
    ("embeddings whose made.json is a list", reads(_made, "made.json", LIST), r"made\.json: found a JSON list"),
    ("embeddings of which one is a number", reads(_made, "made.json", {"files": [3], "width": 2}), r"made\.json: found no list `files`"),
    ("a timed run whose made.json is no JSON", reads(timed, "made.json", NO_JSON), r"made\.json: not JSON .*export the run again"),
    ("a timed run whose made.json is a list", reads(timed, "made.json", LIST), r"made\.json: found a JSON list"),
    ("shares of a resumed run are no JSON", reads(saved_state, "shares.json", NO_JSON), r"shares\.json: not JSON .*to start again"),
    ("shares of a resumed run lack the step", reads(saved_state, "shares.json", {"processes": 2}), r"shares\.json: step: found None"),
    ("shares of processes that are a text", reads(saved_state, "shares.json", {"processes": "2", "step": 1}), r"processes: found '2'"),
    ("a record that is a list", reads(in_file(read_record, "r.json"), "r.json", LIST), r"r\.json: "),
    ("a record that is a FIFO", reads(in_file(read_record, "r.json"), "r.json", FIFO), r"r\.json: found a FIFO"),
    ("a record of making that is no UTF-8", reads(in_file(read_made, "m.json"), "m.json", NO_UTF8), r"m\.json: not JSON .*UTF-8"),
    ("a network's config.json is a list", reads(lambda f: load_network(f, dict), "config.json", LIST), r"config\.json: found a JSON list"),
    ("MJHQ's list is no JSON", reads(in_file(read_meta, "m.json"), "m.json", NO_JSON), r"m\.json: not JSON .*MJHQ"),
]  # fmt: skip

IMAGES: dict[str, Content] = {
    "00000/metadata.jsonl": {"prompt": "a cat"},
    "made.json": {"row": "a", "method": "a", "nfe": 1},
}
FOLDERS = [
    ("made.json is no JSON", "made.json", NO_JSON, r"made\.json: not JSON .*sample again"),
    ("made.json is a list", "made.json", LIST, r"made\.json: found a JSON list, expected an object; sample again"),
    ("made.json is no UTF-8", "made.json", NO_UTF8, r"made\.json: not JSON .*UTF-8"),
    ("made.json names a row that is a number", "made.json", {"row": 3, "method": "m", "nfe": 1}, r"made\.json: .*row"),
    ("made.json is a FIFO", "made.json", FIFO, r"made\.json: found a FIFO|made\.json: missing"),
    ("a prompt's line is no JSON", "00000/metadata.jsonl", NO_JSON, r"00000/metadata\.jsonl: not JSON"),
    ("a prompt's line is a FIFO", "00000/metadata.jsonl", FIFO, r"00000/metadata\.jsonl: found a FIFO"),
]


def is_recipe(_: Path, found: Any) -> None:
    assert found == (RECIPE, RUN["made.json"])


CASES = [
    *(Case("run folders", name, reads(read_run, file, content, RUN), says) for name, file, content, says in RUNS),
    Case("run folders", "an ordinary one", reads(read_run, "notes.txt", b"mine", RUN), None, is_recipe),
    *(Case("pipelines", name, make, says) for name, make, says in PIPELINES),
    *(Case("caches, states and records", name, make, says) for name, make, says in OTHERS),
    *(
        Case(
            "images' made.json",
            name,
            reads(open_images, file, content, IMAGES),
            says,
        )
        for name, file, content, says in FOLDERS
    ),
]
