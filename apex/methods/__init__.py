"""The methods, one file each, found by looking. The contract is in `base.py`; how to add one, in `docs/add_a_baseline.md`.

A method is a file that defines METHOD: in this folder (`apex_eq25.py` is `apex-eq25`), at a path that a profile names
under `method_files`, or in an installed package with an entry point of the group `apex.methods`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from apex.errors import USER_FILES, UserError, described, place_in_user_code
from apex.provenance import digest

if TYPE_CHECKING:
    from apex.methods.base import Method

GROUP = "apex.methods"
_NOT_METHODS = {"base"}


def available(files: Sequence[str | Path] = ()) -> dict[str, str]:
    """Method name -> where it is: a file, or `package.module` of an entry point. Imports no method.

    Args:
        files: paths of methods outside the package.

    Raises:
        UserError: a path that is no Python file, or two methods of one name.
    """
    found: dict[str, str] = {}

    def add(name: str, place: str) -> None:
        if name in found:
            raise UserError(f"{place}: a second method named {name!r}; the first is {found[name]}; rename one of the two")
        found[name] = place

    for module in pkgutil.iter_modules(__path__):
        if module.name not in _NOT_METHODS and not module.name.startswith("_"):
            add(module.name.replace("_", "-"), str(Path(module.module_finder.path) / f"{module.name}.py"))
    for name, place in _entry_points():
        add(name, place)
    for file in map(Path, files):
        if file.suffix != ".py" or not file.is_file():
            raise UserError(f"method_files: found no Python file at {file}; expected the path of a method such as my_method.py")
        add(file.stem.replace("_", "-"), str(file))
    return dict(sorted(found.items()))


@cache
def _entry_points() -> tuple[tuple[str, str], ...]:
    """(name, place) of other packages' methods. Once a process: the metadata of every installed package are read."""
    return tuple((entry.name, entry.value) for entry in metadata.entry_points(group=GROUP))


def get(name: str, files: Sequence[str | Path] = ()) -> type[Method]:
    """The method's class. Imports torch.

    Raises:
        UserError: unknown name, a file that does not import, or one without METHOD; one line that names the file.
    """
    known = available(files)
    if name not in known:
        raise UserError(f"unknown method {name!r}; known: {', '.join(known)}; a method is a file in apex/methods/")
    place = known[name]
    try:
        module = _load(name, place)
    except (Exception, SystemExit) as error:  # whatever the file raises
        at = place_in_user_code(error)
        raise UserError(f"{_shown(at or place)}: cannot be imported ({described(error)}); mend it or remove the method {name!r}") from error
    from apex.methods.base import Method

    method = module if inspect.isclass(module) else getattr(module, "METHOD", None)  # an entry point may name the class
    if not (inspect.isclass(method) and issubclass(method, Method) and getattr(method, "name", None) == name):
        raise UserError(f"{_shown(place)}: expected METHOD, a subclass of Method with name = {name!r}; found {method!r}")
    for attribute in ("family", "citation"):
        if not getattr(method, attribute, ""):
            raise UserError(f"{_shown(place)}: {method.__name__} has no `{attribute}`, which the tables show; add it")
    return method


def where(method: Method | type[Method]) -> str:
    """The file of a method, for messages."""
    kind = method if inspect.isclass(method) else type(method)
    return _shown(inspect.getsourcefile(kind) or kind.__module__)


def source_digest(name: str, files: Sequence[str | Path] = ()) -> str:
    """Identity of a method's code: its file and those it shares with other methods, without comments and docstrings.

    Losses, networks and the loop do not count: they are everybody's. A file that cannot be read counts as itself.
    """
    place = available(files).get(name, "")
    path = Path(place)
    return digest(_code(path if path.is_file() else _module_file(place.partition(":")[0]) or path, set()))


def _code(path: Path, seen: set[Path]) -> list[str]:
    """A file's syntax tree as text, and those of the methods and shared files that it imports, each once."""
    if path in seen:
        return []
    seen.add(path)
    if not path.is_file():
        return [str(path)]
    text = path.read_text(errors="replace")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return [text]
    shared = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        if module and (module.startswith("apex.methods.") or module == "apex.discriminators") and module != "apex.methods.base":
            shared.append(module)
    found = [ast.dump(tree)]
    for module in sorted(set(shared)):
        if file := _module_file(module):
            found += _code(file, seen)
    return found


def _module_file(module: str) -> Path | None:
    """Where a module's code is, without importing it (but its parents)."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


@cache
def _load(name: str, place: str):
    path = Path(place)
    if path.suffix != ".py":
        module, _, attribute = place.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute and attribute != "METHOD" else loaded
    if path.parent in map(Path, __path__):
        return importlib.import_module(f"{__name__}.{path.stem}")
    spec = util.spec_from_file_location(f"apex_method_{path.stem}", path)
    USER_FILES.add(spec.origin)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _shown(place: str) -> str:
    """A path as short as it can be read from here."""
    path = Path(place)
    root = Path(__file__).resolve().parent.parent.parent
    for base in (Path.cwd(), root):
        if path.is_absolute() and path.is_relative_to(base):
            return str(path.relative_to(base))
    return place
