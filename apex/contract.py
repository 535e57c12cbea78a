"""The checks of `apex.methods.base`'s contract. `python -m apex.conformance` lists and runs them."""

from __future__ import annotations

import inspect
import math
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from apex import methods
from apex.errors import UserError
from apex.methods.base import STUDENT, Method, Params, Step
from apex.testbed import Bed, Trial, gaussian_fit, gradient_sizes

PROGRESS = (0.05, 0.4, 0.8)  # early, middle and late in a schedule
GAUSSIAN_STEPS, GAUSSIAN_LOOK, GAUSSIAN_SIZE, GAUSSIAN_RATE = 4000, 250, 128, 3e-3
CONTROL_STEPS = 2000
CLOSER = 0.7  # the one-step distance on the way over the one before, at most; recursions over short intervals are slow
KEPT = 0.25  # what a control may move away from what it promises; the data's spread is about 1


class Fault(Exception):
    """What is wrong, in one line; the file is named by who reports it."""


@dataclass
class Subject:
    """A method under test. place: its file. params: settings other than the defaults."""

    name: str
    kind: type[Method]
    place: str
    params: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Method:
        return self.kind(dict(self.params))

    def trial(self, family: str = "sana", **options: Any) -> Trial:
        tuning = options.pop("tuning", self.kind.tunings[0])
        return Trial(self.make(), Bed(family), tuning=tuning, **options)


# ------------------------------------------------------------------------------------------------------------- checks


def declared(subject: Subject) -> str:
    kind = subject.kind
    for name in ("name", "family", "citation"):
        if not isinstance(value := getattr(kind, name, None), str) or not value:
            raise Fault(f"{name} is {value!r}; expected text")
    for name, known in (("target_time", ("none", "embedding")), ("sample_mode", ("few", "any", "multi"))):
        if (value := getattr(kind, name)) not in known:
            raise Fault(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if not set(kind.needs) <= {"ema", "teacher"} or isinstance(kind.needs, str):
        raise Fault(f"needs is {kind.needs!r}; expected a frozenset of 'ema' and 'teacher'")
    if not kind.tunings or isinstance(kind.tunings, str) or not set(kind.tunings) <= {"full", "lora"}:
        raise Fault(f"tunings is {kind.tunings!r}; expected a tuple of 'full' and 'lora'")
    if "lora" not in kind.tunings and not kind.no_lora:
        raise Fault("tunings leaves out 'lora', but no_lora gives no reason")
    if not isinstance(kind.one_step, bool):
        raise Fault(f"one_step is {kind.one_step!r}; expected True or False")
    if kind.losses is Method.losses:
        raise Fault("there is no losses()")
    if not (inspect.isclass(kind.Params) and issubclass(kind.Params, Params)):
        raise Fault(f"Params is {kind.Params!r}; expected a subclass of apex.methods.base.Params")
    return f"{kind.family}, {kind.citation}"


def params(subject: Subject) -> str:
    kind = subject.kind.Params
    if kind.model_config.get("extra") != "forbid":
        raise Fault("Params takes unknown settings; keep the model_config of apex.methods.base.Params")
    for name, about in kind.model_fields.items():
        if about.is_required():
            raise Fault(f"params.{name} has no default")
        if not (about.description or "").strip():
            raise Fault(f"params.{name} has no description")
        if loose := next(_loose(about.annotation), None):
            raise Fault(f"params.{name} has the type {loose}; expected numbers, True or False, one of given words, or a list of these")
    try:
        kind.model_validate(kind().model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        raise Fault(f"the default of params.{'.'.join(map(str, first['loc']))} is not valid: {first['msg']}") from None
    return f"{len(kind.model_fields)} settings"


def _loose(annotation: Any) -> Iterator[str]:
    """Parts of a type that could be anything; a text alone stands for a path."""
    origin = get_origin(annotation)
    if origin is Literal or annotation in (bool, int, float, str, type(None)):
        return
    if origin in (Union, types.UnionType, list, tuple):
        for part in get_args(annotation):
            if part is not Ellipsis:
                yield from _loose(part)
    elif origin is not None and getattr(annotation, "__metadata__", None):
        yield from _loose(get_args(annotation)[0])
    else:
        yield getattr(annotation, "__name__", str(annotation))


def step(subject: Subject) -> str:
    trial = subject.trial()
    seen: dict[str, None] = {}
    for number in range(trial.method.cycle()):
        out = trial.losses(number, progress=0.4)
        _check_step(out, trial)
        seen |= dict.fromkeys(out.losses)
    last = trial.method.cycle() - 1
    if missing := sorted(set(trial.roles) - set(out.losses)):
        raise Fault(f"step {last}, the last of the cycle, has no loss for {', '.join(missing)}; it must update every role")
    return f"roles {', '.join(seen)}" + (f"; cycle of {last + 1}" if last else "")


def _check_step(out: Any, trial: Trial) -> None:
    if not isinstance(out, Step) or not out.losses:
        raise Fault(f"losses() returned {type(out).__name__}; expected a Step with one loss or more")
    for role, loss in out.losses.items():
        if role not in trial.roles:
            raise Fault(f"the role {role!r} trains nothing; known: {', '.join(trial.roles)}")
        if not isinstance(loss, Tensor) or loss.ndim:
            raise Fault(f"the loss of {role} is {_seen(loss)}; expected a scalar tensor")
        if not loss.requires_grad:
            raise Fault(f"the loss of {role} has no gradient")
        if not math.isfinite(float(loss.detach())):
            raise Fault(f"the loss of {role} is {float(loss.detach())}")
    for name, value in out.logs.items():
        if isinstance(value, Tensor) and (value.ndim or value.requires_grad):
            raise Fault(f"the log {name!r} is {_seen(value)}; expected a detached scalar")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise Fault(f"the log {name!r} is {_seen(value)}; expected a number") from None
        if not math.isfinite(number):
            raise Fault(f"the log {name!r} is {number}")


def _seen(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a tensor of shape {tuple(value.shape)}" + (" with gradient" if value.requires_grad else "")


def routing(subject: Subject) -> str:
    trial = subject.trial()
    reached: set[str] = set()
    owners = {"student": trial.student, **trial.extra}
    role_of = {name: STUDENT if name == "student" else trial.method.roles().get(name, STUDENT) for name in owners}
    if unknown := sorted(set(trial.method.roles()) - set(trial.extra)):
        raise Fault(f"roles() names {', '.join(unknown)}, which extra_networks() does not make")
    if unknown := sorted(set(trial.method.rates()) - set(trial.roles)):
        raise Fault(f"rates() names {', '.join(unknown)}, which trains nothing")
    trained = [p for module in owners.values() for p in module.parameters() if p.requires_grad]
    fixed = {"the teacher": _values(trial.teacher), "the running mean": [s.clone() for s in trial.ema.shadow]}
    for progress in PROGRESS:
        for number in range(trial.method.cycle()):
            for role in trial.losses(number, progress=progress).losses:
                for p in trained:
                    p.grad = None
                trial.losses(number, progress=progress).losses[role].backward()
                for name, module in owners.items():
                    size = gradient_sizes(list(module.parameters()))
                    if not math.isfinite(size):
                        raise Fault(f"the loss of {role} has a gradient of {size} in {name}")
                    if size and role_of[name] != role:
                        culprit = next(k for k, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().sum()))
                        raise Fault(f"the loss of {role} sends gradient to {name}.{culprit}, which {role_of[name]} trains; see `frozen`")
                    if size:
                        reached.add(name)
    for name, module in owners.items():
        if name not in reached and any(p.requires_grad for p in module.parameters()):
            raise Fault(f"no gradient ever reaches {name}; the loss of {role_of[name]} should")
    if any(p.grad is not None for p in trial.teacher.parameters()):
        raise Fault("the teacher received a gradient")
    for name, now in (("the teacher", _values(trial.teacher)), ("the running mean", trial.ema.shadow)):
        if not all(torch.equal(a, b) for a, b in zip(fixed[name], now, strict=True)):
            raise Fault(f"losses() changed {name}")
    if not all(p.requires_grad for p in trained):
        raise Fault("losses() left parameters frozen")
    return ", ".join(sorted(reached))


def _values(module: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for v in module.state_dict().values()]


def determinism(subject: Subject) -> str:
    found = []
    for seed in (1, 2):
        trial = subject.trial()
        for number in range(trial.method.cycle()):
            torch.manual_seed(seed)  # what is drawn must come from the batch
            out = trial.losses(number, progress=0.4)
        sum(out.losses.values()).backward()
        grads = [p.grad for parameters in trial.roles.values() for p in parameters]
        found.append(({role: loss.detach() for role, loss in out.losses.items()}, [g.clone() for g in grads if g is not None]))
    (first, grads), (again, grads_again) = found
    for role in first:
        if not torch.equal(first[role], again[role]):
            raise Fault(
                f"the same batch gave {role} the losses {float(first[role]):.6g} and {float(again[role]):.6g}; "
                "draw with batch.uniform, batch.normal or batch.normal_like alone"
            )
    if not all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True)):
        raise Fault("the same batch gave two gradients")
    other = subject.trial()
    out = [other.losses(other.method.cycle() - 1, progress=0.4, seed=seed).losses[STUDENT] for seed in (0, 1)]
    if torch.equal(*(loss.detach() for loss in out)):
        raise Fault("two different batches gave the student the same loss")
    return "losses and gradients equal bit by bit"


def backbones(subject: Subject) -> str:
    moved = []
    for family in ("sana", "qwen_image"):
        trial = subject.trial(family)
        before = _values(trial.student)
        for _ in range(trial.method.cycle()):
            _check_step(trial.optimise(), trial)
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(before, _values(trial.student), strict=True)))
        if not 0 < change < math.inf:
            raise Fault(f"{family}: after {trial.step} steps the student has moved by {change}")
        moved.append(f"{family} moved by {change:.2g}")
    return ", ".join(moved)


def lora(subject: Subject) -> str:
    if "lora" not in subject.kind.tunings:
        return f"refused: {subject.kind.no_lora}"
    trial = subject.trial(tuning="lora")
    base = {k: p.detach().clone() for k, p in trial.student.named_parameters() if not p.requires_grad}
    adapter = [p.detach().clone() for p in trial.roles[STUDENT]]
    for _ in range(2 * trial.method.cycle()):
        _check_step(trial.optimise(), trial)
    if changed := [k for k, p in trial.student.named_parameters() if k in base and not torch.equal(p, base[k])]:
        raise Fault(f"training moved {changed[0]}, which is no part of the adapter")
    if all(torch.equal(a, p) for a, p in zip(adapter, trial.roles[STUDENT][: len(adapter)], strict=True)):
        raise Fault("training does not move the adapter")
    return f"{sum(p.numel() for p in adapter)} parameters"


def micro_batches(subject: Subject) -> str:
    for size in (1, 2, 3):
        trial = subject.trial(size=size)
        for number in range(max(4, trial.method.cycle())):
            try:
                _check_step(out := trial.losses(number, progress=0.4), trial)
                sum(out.losses.values()).backward()
            except Fault as fault:
                raise Fault(f"with {size} samples, micro-step {number}: {fault}") from None
        if not gradient_sizes(trial.roles[STUDENT]):
            raise Fault(f"with {size} samples no gradient reaches the student")
    return "1, 2, 3 samples"


def resume(subject: Subject) -> str:
    steps = max(4, trial_cycle := subject.make().cycle()) + trial_cycle % 2
    half = steps // 2
    whole = subject.trial(total=steps)
    for _ in range(half):
        whole.optimise()
    state = whole.state()
    for _ in range(steps - half):
        whole.optimise()
    torch.manual_seed(7)
    again = subject.trial(total=steps)
    again.restore(state)
    for _ in range(steps - half):
        again.optimise()
    for name, value in whole.trained().items():
        if not torch.equal(value, again.trained()[name]):
            raise Fault(
                f"restored at step {half} of {steps}, {name} ends elsewhere; keep what changes in parameters and buffers of extra networks"
            )
    return f"{half} + {steps - half} steps end as {steps} do"


def gaussian(subject: Subject) -> str:
    kind = subject.kind
    total = GAUSSIAN_STEPS if kind.one_step else CONTROL_STEPS
    trial = subject.trial("gaussian", tuning="full", total=total, size=GAUSSIAN_SIZE, rate=GAUSSIAN_RATE, ema=0.99)
    start = least = gaussian_fit(trial.student, kind.sample_mode).w2
    while trial.step < total:
        _check_step(trial.optimise(), trial)
        if trial.step % GAUSSIAN_LOOK == 0:
            with trial.ema.applied():
                end, many = gaussian_fit(trial.student, kind.sample_mode), gaussian_fit(trial.student, "multi", 50)
            least = min(least, end.w2)
            if kind.one_step and end.w2 < CLOSER * start:
                break
    said = f"W2 {start:.3f} -> {end.w2:.3f} in {trial.step} steps, mean off by {end.mean:.3f}, std by {end.std:.3f}"
    if kind.one_step:
        if not least < CLOSER * start:
            raise Fault(f"one step does not come closer to Gaussian data: {said}; at least {least:.3f}; a control says one_step = False")
    elif kind.sample_mode == "multi" and not many.w2 < KEPT:
        raise Fault(f"50 Euler steps were exact and end {many.w2:.3f} from Gaussian data (W2)")
    elif not end.mean < KEPT:
        raise Fault(f"the mean of one step was exact and ends {end.mean:.3f} off")
    return said + ("" if kind.one_step else f"; control, W2 of 50 Euler steps {many.w2:.3f}")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "declared": declared,
    "params": params,
    "step": step,
    "routing": routing,
    "determinism": determinism,
    "backbones": backbones,
    "lora": lora,
    "micro-batches": micro_batches,
    "resume": resume,
    "gaussian": gaussian,
}


# ------------------------------------------------------------------------------------------------------------ running


def find(name: str) -> Subject:
    """A method by its name, or by the path of its file.

    Raises:
        UserError: it cannot be found or imported; one line that names the file.
    """
    path = Path(name)
    files = []
    if path.suffix == ".py" or path.parent != Path("."):
        known = {Path(place).resolve() for place in methods.available().values() if place.endswith(".py")}
        files = [] if path.resolve() in known else [name]
        name = path.stem.replace("_", "-")
    kind = methods.get(name, files)
    return Subject(name, kind, methods.where(kind))


@contextmanager
def _quiet() -> Iterator[None]:
    """The global random state as it was."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield


def check(subject: Subject, name: str) -> str:
    """Runs one check; returns what was seen.

    Raises:
        UserError: it fails; one line that names the file.
    """
    try:
        with _quiet():
            return CHECKS[name](subject)
    except Fault as fault:
        raise UserError(f"{subject.place}: {fault}") from None
    except Exception as error:  # whatever the method raises
        where = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(subject.place).name]
        line = f":{where[-1].lineno}" if where else ""
        text = " ".join(str(error).split()) or "no message"
        raise UserError(f"{subject.place}{line}: {type(error).__name__}: {text}") from error
