"""Weights from files, all of them and no others: what every network that is read from disk passes through.

The libraries initialise anew what a file lacks, leave out what a network has no place for, and say so in a log line at most. Here each
is one `UserError` that names the file and the tensor, before anything is computed. Buffers that a class makes itself, tied weights, and
what a class declares as left out are not in files by design, and are no fault.

Values are read once more to see that they are finite: about 10 GB/s on one core in bf16, so 4 s for the 20B parameters of Qwen-Image.
No copy is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from apex.errors import UserError, readable

RESTORE = "restore the folder"  # what mends a network that the suite did not make


def pretrained(kind: Any, folder: Path, mend: str, dtype: torch.dtype | None = None, **more: Any) -> Any:
    """`kind.from_pretrained(folder)`, from safetensors alone: every weight of the network is from the files, and every one there is used.

    Args:
        kind: a model class of diffusers or transformers, or an automatic one of transformers.
        folder: with config.json and the weights, in one file or in shards.
        mend: how to mend a fault, the end of its line.
        dtype: of the weights; None: the library's default.

    Raises:
        UserError: the files are missing or damaged; tensors are missing, superfluous, of other shapes or not finite.
    """
    if dtype is not None:
        more["torch_dtype" if _of_diffusers(kind) else "dtype"] = dtype
    where, files = _files(folder, "diffusion_pytorch_model" if _of_diffusers(kind) else "model", mend)
    with readable(folder, mend), _silent():
        model, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **more)
    known = {name: list(value.shape) for name, value in model.state_dict().items()}
    made = {name for name, _ in model.named_buffers()} - known.keys()
    other = {name: (list(found), list(expected)) for name, found, expected in map(tuple, info["mismatched_keys"])}
    extra = {name for name in info["unexpected_keys"] if not any(name == one or one.endswith(f".{name}") for one in made)}
    missing = {name: known.get(name) for name in info["missing_keys"]}
    _refuse(type(model).__name__, files, where, missing, extra, other, mend)
    check_finite(model.state_dict(), files, where, mend)
    return model


def take(model: nn.Module, given: Mapping[str, Tensor], file: Path, mend: str) -> None:
    """Copies the weights of a file into a network: exactly the network's tensors, by name and shape, all of them finite.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape, or not finite.
    """
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    missing = {name: shape for name, shape in wanted.items() if name not in given}
    other = {k: (list(v.shape), wanted[k]) for k, v in given.items() if k in wanted and list(v.shape) != wanted[k]}
    _refuse(type(model).__name__, {}, file, missing, given.keys() - wanted.keys(), other, mend)
    check_finite(given, {}, file, mend)
    model.load_state_dict(given, strict=True)


def check_finite(tensors: Mapping[str, Tensor], files: Mapping[str, Path], where: Path, mend: str) -> None:
    """Raises `UserError` where a tensor holds NaN or infinity. files: tensor -> its file; where: that of a tensor that is not in it."""
    found = [name for name, value in tensors.items() if not finite(value)]
    if found:
        raise UserError(
            f"{files.get(found[0], where)}: {found[0]}: found values that are not finite, expected numbers{_more(found)}; {mend}"
        )


@torch.no_grad()
def precision(model: nn.Module) -> torch.dtype:
    """The dtype of the first weight. The property of diffusers' models looks through all of them, which takes 0.15 ms a call."""
    return next(model.parameters()).dtype


def finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity. By its extremes, which carry both: `isfinite` needs 40 times as long and a copy."""
    if not value.is_floating_point() or value.is_meta or not value.numel():
        return True
    if value.element_size() == 1:  # no arithmetic in float8
        value = value.float()
    return all(bool(end.isfinite()) for end in value.aminmax())


def _refuse(
    network: str,
    files: Mapping[str, Path],
    where: Path,
    missing: Mapping[str, Any],
    extra: Iterable[str],
    other: Mapping[str, tuple[list[int], list[int]]],
    mend: str,
) -> None:
    """The first fault as one line. files: tensor -> its file; where: for a tensor that no file has."""
    for names, words in (
        (missing, lambda name: f"found no such tensor, expected one of shape {missing[name]}, as a {network} has it"),
        (other, lambda name: "found shape {}, expected {}".format(*other[name])),
        (extra, lambda name: f"found a tensor without a place in a {network} of this configuration, expected none"),
    ):
        if names := sorted(names):
            raise UserError(f"{files.get(names[0], where)}: {names[0]}: {words(names[0])}{_more(names)}; {mend}")


def _more(names: list[str]) -> str:
    return f" [and {len(names) - 1} more]" if len(names) > 1 else ""


def _of_diffusers(kind: Any) -> bool:
    return kind.__module__.startswith("diffusers.")


def _files(folder: Path, stem: str, mend: str) -> tuple[Path, dict[str, Path]]:
    """The file of the weights or the index of their shards, and tensor -> the file that holds it, by the files' headers.

    The folder and nothing where there are no such files: the library says it.

    Raises:
        UserError: a shard is missing or damaged, or holds not what the index says.
    """
    index, whole = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.is_file():
        return (whole, dict.fromkeys(_names(whole, mend), whole)) if whole.is_file() else (folder, {})
    with readable(index, mend):
        listed = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    held: dict[Path, set[str]] = {}
    for name, file in listed.items():
        if not file.is_file():
            raise UserError(f"{file}: not found, but {index.name} places {name} there; {mend}")
        if file not in held:
            held[file] = set(_names(file, mend))
        if name not in held[file]:
            raise UserError(f"{file}: {name}: found no such tensor, but {index.name} places it there; {mend}")
    return index, {name: file for file, names in held.items() for name in names}


def _names(file: Path, mend: str) -> list[str]:
    with readable(file, mend), safe_open(file, "pt") as opened:
        return list(opened.keys())


@contextmanager
def _silent() -> Iterator[None]:
    """The libraries' reports on what they loaded: what matters of them is an error here."""
    import diffusers  # both take seconds: not for networks of our own
    import transformers

    before = [(library, library.get_verbosity()) for library in (diffusers.utils.logging, transformers.utils.logging)]
    try:
        for library, _ in before:
            library.set_verbosity_error()
        yield
    finally:
        for library, level in before:
            library.set_verbosity(level)
