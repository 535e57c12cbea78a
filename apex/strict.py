"""Strict settings: YAML in, pydantic models out, and one-line errors that name the key. Generic; `apex.config` uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
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
        return [parse_yaml(part.strip(), "value") for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.value[at][0].start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_yaml(text: str, origin: str) -> Any:
    """`UserError` with the line where `text` is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{origin}:{line} not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def put(values: dict, key: str, value: Any) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = {}
        values[parent] = dict(inner)
        values = values[parent]
    values[last] = value


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r};{hint} known: {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel], origin: str, set_keys: Iterable[str] = (), prefix: str = "") -> str:
    """The first problem of a validation error as one line, with the number of the others."""
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
    for name in set_keys:  # the command line is at fault, not the file
        if re.match(rf"{re.escape(name)}[.:]", message):
            origin = "--set"
    return f"{origin}{' ' if origin == '--set' else ': '}{message}" + (f" [and {len(others)} more]" if others else "")


def _short(value: Any) -> str:
    text = repr(value)
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
