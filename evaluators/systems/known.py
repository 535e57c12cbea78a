"""The systems of Table 1 and their parts, from systems.yaml and parts.yaml. No torch: the workflow and the tables read this too."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from apex.errors import UserError
from apex.provenance import digest
from apex.strict import Strict, explain, parse_yaml, unknown

HERE = Path(__file__).resolve().parent
PARTS, SYSTEMS = HERE / "parts.yaml", HERE / "systems.yaml"
SMALL_SCALE = 8  # a small system's images are this many times narrower
COLORS = ("red", "green", "blue", "yellow", "black", "white", "brown", "purple", "orange", "pink")
OBJECTS = ("bench", "bicycle", "dog", "clock", "vase", "train", "apple", "umbrella", "zebra", "laptop", "chair", "cup", "kite")
# In GenEval's words and lengths; no two of 130 are the same.
PROMPTS = [f"a photo of a {color} {name} and a {OBJECTS[(i + 5) % 13]}" for color in COLORS for i, name in enumerate(OBJECTS)]


class Part(Strict):
    """A network of parts.yaml. class: `package.Class`. parameters: its published count. small: sizes where there is no GPU."""

    kind: str = Field(alias="class")
    source: str
    parameters: int
    config: dict[str, Any]
    small: dict[str, Any]


class System(Strict):
    """A system of systems.yaml. compiled: the denoiser through torch.compile. lora: rank of an adapter that is not merged."""

    published: list[str]
    pipeline: str
    parts: dict[str, str]
    tokens: dict[str, int]
    scheduler: dict[str, Any]
    call: dict[str, Any] = Field({})
    nfe: list[int] = Field([1, 2, 4])
    resolutions: list[int] = Field([512, 1024])
    lora: int = 0
    compiled: bool = False

    @property
    def denoiser(self) -> str:
        return "unet" if "unet" in self.parts else "transformer"

    @property
    def networks(self) -> dict[str, Part]:
        """Its parts by role."""
        return {role: parts()[name] for role, name in self.parts.items()}

    @property
    def content(self) -> str:
        """Digest of all that decides what is timed."""
        return digest({"system": self.model_dump(), "parts": {role: part.model_dump() for role, part in self.networks.items()}})

    @property
    def guided(self) -> bool:
        """Two evaluations of the network a step."""
        return self.call.get("true_cfg_scale", 1.0) > 1.0


def _read(path: Path, model: type[Strict]) -> dict[str, Any]:
    raw = parse_yaml(path.read_text(), str(path))
    out = {}
    for name, entry in raw.items():
        if base := raw.get(entry.pop("like", "")):
            entry = raw[name] = base | {
                key: base[key] | value if isinstance(base.get(key), dict) else value for key, value in entry.items()
            }
        try:
            out[name] = model.model_validate(entry)
        except ValidationError as error:
            raise UserError(explain(error, model, f"{path}: {name}")) from None
    return out


@cache
def parts() -> dict[str, Part]:
    return _read(PARTS, Part)


@cache
def systems() -> dict[str, System]:
    return _read(SYSTEMS, System)


def system(name: str) -> System:
    """Raises UserError where no system has this name."""
    if name not in systems():
        raise UserError(f"--system {unknown('system', name, systems())}")
    return systems()[name]


def chosen(names: str) -> list[str]:
    """`a,b` as names of systems; all for nothing. Raises UserError where one is unknown."""
    found = [name.strip() for name in str(names).split(",") if name.strip()]
    for name in found:
        system(name)
    return found or list(systems())
