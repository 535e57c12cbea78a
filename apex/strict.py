"""Strict settings: YAML in, pydantic models out, and one-line errors that name the key. Generic; `apex.config` uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from apex.errors import UserError


class Strict(BaseModel):
    """Unknown keys, and values of a neighbouring type ("64" for 64), are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def as_list(value: Any) -> Any:
    """`a,b` and a lone scalar are lists too, so that `--config methods=apex,fm seeds=0` works."""
    if value is None:
        return []
    if isinstance(value, str):
        try:
            return [parse_yaml(part.strip(), "value") for part in value.split(",") if part.strip()]
        except UserError:
            raise ValueError(f"found {_short(value)}, expected words or numbers with commas between them, or a list") from None
    return [value] if isinstance(value, int | float) else value


MERGE = "tag:yaml.org,2002:merge"  # the tag of the key `<<`
MOST_NODES = 1_000_000  # of one document, aliases written out


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in YAML 1.2, and a key given twice is an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Checks the keys as they are written, before merge keys (`<<: *base`) add others."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "found a list or a mapping as a key, expected text", key.start_mark)
            name = key.value if key.tag == MERGE else self.construct_object(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES:,} values; write it without aliases")
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, those of an alias counted each time."""
    if (size := known.get(id(node))) is None:
        known[id(node)] = -1  # until it is known
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        size = 1 + (sum(_size(part, known) for part in inner) if isinstance(node, yaml.CollectionNode) else 0)
        known[id(node)] = size
    if size < 0:
        raise yaml.YAMLError("its aliases stand for themselves; write it without aliases")
    return size


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_yaml(text: str, origin: str) -> Any:
    """`UserError` with the line where `text` is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{origin}:{line} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: of a day or a number that cannot be
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{origin}: not valid YAML: nested too deeply; write it with fewer levels") from None


def read_text(path: Path) -> str:
    """A text file's content. Raises `UserError` where it is not UTF-8, `OSError` where it cannot be read."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not UTF-8: found byte {content[error.start]:#04x} in line {line}, expected UTF-8; save it as UTF-8"
        ) from None


SECRET = re.compile(
    r"""
      https?://[^/\s?\#]*@                                                 # a user, perhaps with a password, in a URL
    | ://[^/\s?\#@:]*:[^/\s?\#@]+@                                         # a password in a URL of another kind
    | [?&\#][\w-]*(key|token|secret|passwd|password|signature|credential)=[^&\s]
    | \b(sk|rk|pk)-[\w-]*[A-Za-z0-9]{16}
    | \b(hf|ghp|gho|ghs|github_pat|glpat|xox[abprs])[_-][A-Za-z0-9_-]{16}
    | \b(AKIA|ASIA|AIza)[A-Za-z0-9_-]{12}
    | \bBearer\s+[\w.~+/-]{8}
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    """,
    re.VERBOSE,
)
SECRET_KEY = re.compile(r"(api|access|secret|private)[_-]?key|(\w+[_-])?(token|secret|password|passwd)", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def has_surrogate(text: str) -> bool:
    """Whether a text holds half of a character, which no UTF-8 file can."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def check_texts(values: Any, free: re.Pattern[str], key: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, fault) of every text that may not stand in a configuration, which is printed and stored with every result:
    passwords and keys, which the fault does not show, control characters, and line ends but where the key matches `free`."""
    if isinstance(values, dict | list):
        for name, inner in values.items() if isinstance(values, dict) else enumerate(values):
            yield from check_texts(inner, free, f"{key}.{name}" if key else str(name))
    elif isinstance(values, str) and values:
        if SECRET.search(values) or SECRET_KEY.fullmatch(key.rpartition(".")[2]):
            yield (
                key,
                "found what looks like a password or a key (not shown here), expected none, for settings are printed and stored; set an "
                "environment variable to it (evaluation.wise.key_variable names that of a judge)",
            )
        elif CONTROL.search(values):
            yield key, "found a control character, expected text; remove it"
        elif has_surrogate(values):
            yield key, "found half of a character (a surrogate), expected text; remove it"
        elif "\n" in values and not free.match(key):
            yield key, "found a line end in it, expected one line; remove it"


def put(values: dict, key: str, value: Any) -> None:
    """Sets the value at a dotted key; what is on the way is copied, not changed. Raises `ValueError` with what is wrong."""
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise ValueError("found an empty part, expected names with a dot between two, such as train.batch_size")
    at: Any = values
    for parent in parents:
        place = _place(at, parent)
        inner = at[place] if isinstance(at, list) else at.get(place)
        at[place] = list(inner) if isinstance(inner, list) else dict(inner) if isinstance(inner, dict) else {}
        at = at[place]
    at[_place(at, last)] = value


def _place(values: dict | list, part: str) -> int | str:
    number = part.isascii() and part.isdigit() and len(part) < 20
    if isinstance(values, list) and not (number and int(part) < len(values)):
        raise ValueError(f"found {part}, expected the number of one of {len(values)} entries, counted from 0, or a whole list")
    return int(part) if number else part


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r};{hint} known: {', '.join(known)}"


def explain(
    error: ValidationError, model: type[BaseModel], origin: str, set_keys: Iterable[str] = (), prefix: str = "", said: str = "--set"
) -> str:
    """The first problem of a validation error as one line, with the number of the others.

    Args:
        error: of pydantic.
        model: what was validated.
        origin: where the values are from, such as a file's name.
        set_keys: keys whose values are from the command line.
        prefix: stands before every key.
        said: the option of the command line.
    """
    first, *others = error.errors()
    loc = first["loc"]
    key = (prefix + ".".join(str(part) for part in loc)).removesuffix(".")
    if first["type"] == "extra_forbidden":
        message = f"{key}: {unknown('key', loc[-1], _model_at(model, loc[:-1]).model_fields)}"
    elif first["type"] == "missing":
        message = f"{key}: not given, expected {_about(model, loc) or 'a value'}"
    elif first["type"] == "value_error":
        message = (f"{key}: " if key else "") + str(first["ctx"]["error"])
    elif first["type"] in ("model_type", "dict_type"):
        message = f"{key}: found {_short(first['input'])}, expected keys and values"
    else:
        expected = first["msg"]
        for phrase in ("Input should be ", "Input should have ", "String should ", "List should ", " after validation"):
            expected = expected.replace(phrase, "")
        about = _about(model, loc)
        message = f"{key}: found {_short(first['input'])}, expected {expected}" + (f" ({about})" if about else "")
    return blame(message, origin, set_keys, said) + (f" [and {len(others)} more]" if others else "")


def blame(message: str, origin: str, set_keys: Iterable[str], said: str) -> str:
    """`ORIGIN: KEY: ...`, or `--set KEY: ...` where the command line has set the key that the message begins with."""
    given = any(message == name or message.startswith((f"{name}.", f"{name}:")) for name in set_keys)
    return f"{said} {message}" if given else f"{origin}: {message}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)


def _model_at(model: type[BaseModel], loc: tuple) -> type[BaseModel]:
    for part in loc:  # list positions and keys of free dictionaries name no field
        if part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation) or model
    return model


def _about(model: type[BaseModel], loc: tuple) -> str:
    for end in range(len(loc), 0, -1):
        field = _model_at(model, loc[: end - 1]).model_fields.get(loc[end - 1])
        if field is not None:
            return field.description or ""
    return ""


def document(model: type[BaseModel], indent: str = "") -> Iterable[str]:
    """Lines of YAML: every field of `model` with its default and, as a comment, its description."""
    for name, field in model.model_fields.items():
        about = f"  # {field.description}" if field.description else ""
        if isinstance(field.default, BaseModel):
            yield f"{indent}{name}:  # {(type(field.default).__doc__ or '').strip()}"
            yield from document(type(field.default), indent + "  ")
        elif field.is_required():
            yield f"{indent}{name}: <required>{about}"
        else:
            yield f"{indent}{name}: {_flow(field.default)}{about}"


def _flow(value: Any) -> str:
    """One line of YAML; JSON where the two agree, since it quotes text."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip() if isinstance(value, dict) else json.dumps(value)
