"""Networks whose exact answer is known in float64, batches that remember what they drew, and the networks of a method around them.

Data are those of `apex.testbed`: x ~ N(mean_c, diag std_c^2) on latents (B, 2, 1, 1), so velocity and flow map have closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from apex.budget import Cost, Counted, Ledger
from apex.conditioning import Condition
from apex.discriminators import Heads
from apex.flow import expand, guide
from apex.methods.base import Batch, Networks, Pairs
from apex.networks import Fixed
from apex.testbed import CAPTION, MEANS, STDS, gaussian_condition

F64 = torch.float64

hypothesis.settings.register_profile("methods", deadline=None, max_examples=50)
hypothesis.settings.load_profile("methods")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def which(cond: Condition) -> Tensor:
    """The Gaussian that a caption names."""
    return cond.embeds[:, 0, 0].long()


def captions(index: Tensor) -> Condition:
    cond = gaussian_condition(index)
    return Condition(cond.embeds.double(), cond.mask.double())


def other(cond: Condition) -> Condition:
    """The other Gaussian: it stands for the empty caption, so that guidance does something."""
    return captions(1 - which(cond))


# ----------------------------------------------------------------------------------------------------------- networks


class Net(nn.Module):
    """What networks here share: two blocks of features, (B, 3, 4) each, and a learned correction of F, zero at first."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(nn.Linear(2 + 1 + CAPTION, 12) for _ in range(2))
            self.inner, self.outer = nn.Linear(2 + 2 + CAPTION, 12), nn.Linear(12, 2)  # of `Smooth`
        self.slope, self.shift = (nn.Parameter(torch.zeros(2, 1, 1)) for _ in range(2))
        self.double()

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None, blocks: Any = None, both: bool = False) -> Any:
        found = []
        if blocks is not None:
            h = torch.cat([x_t.flatten(1), t[:, None].to(x_t), cond.embeds[:, 0]], 1)
            found = [torch.tanh(self.blocks[k](h)).reshape(-1, 3, 4) for k in blocks]
            if not both:
                return found
        t, r = t.to(x_t), None if r is None else r.to(x_t)
        value = self.velocity(x_t, t, cond, r) + (self.slope * x_t + self.shift) * expand(1 + t - (t if r is None else r), x_t)
        return (value, found) if both else value


class Smooth(Net):
    """A smooth untrained network: x_t, t, r and the caption matter to it."""

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None) -> Tensor:
        r = t if r is None else r
        h = self.inner(torch.cat([x_t.flatten(1), t[:, None], r[:, None], cond.apply_shift(cond.embeds)[:, 0]], 1))
        return self.outer(torch.tanh(h)).reshape(x_t.shape)


class Exact(Net):
    """The exact flow map of the data: F(x_t, t, r) = (x_t - psi(x_t, t -> r)) / (t - r), smooth at r = t too.

    until: where it goes, "r", "zero" whatever r is (a consistency function) or "t" (the velocity, a teacher).
    spread: a factor on the data's standard deviations; with 0 the ODE's paths are straight. offset: added to their means.
    """

    def __init__(self, until: str = "r", spread: float = 1.0, offset: float = 0.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.until, self.spread, self.offset = until, spread, offset

    def gaussian(self, cond: Condition) -> tuple[Tensor, Tensor]:
        mean, std = (table.double()[which(cond)][:, :, None, None] for table in (MEANS, STDS))
        return mean + self.offset, std * self.spread

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None) -> Tensor:
        (mean, std), t = self.gaussian(cond), expand(t, x_t)
        r = torch.zeros_like(t) if self.until == "zero" else t if self.until == "t" or r is None else expand(r, x_t)
        s_t, s_r = ((k**2 + (1 - k) ** 2 * std**2).sqrt() for k in (t, r))
        return (x_t - (1 - t) * mean) * (t + r - (2 - t - r) * std**2) / (s_t * (s_t + s_r)) - mean


class Solved(Net):
    """F whose jump is the guided teacher's Euler steps on a grid: from t to r, or with r = None to the edge of t's phase."""

    def __init__(self, teacher: nn.Module, steps: int, scale: float = 1.0, phases: int = 1) -> None:
        super().__init__()
        self.steps, self.scale, self.each = steps, scale, steps // phases
        self.guided = [teacher]  # in a list: its parameters are not this network's

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None) -> Tensor:
        start = (t * self.steps).round().long()
        end = (r * self.steps).round().long() if r is not None else (start - 1).clamp_min(0) // self.each * self.each
        x = x_t
        for k in range(self.steps, 0, -1):
            now = torch.full_like(t, k / self.steps)
            v = guide(self.guided[0](x, now, cond), self.guided[0](x, now, other(cond)), self.scale)
            x = torch.where(expand((end < k) & (k <= start), x), x - v / self.steps, x)
        width = expand((start - end) / self.steps, x)
        return torch.where(width > 0, (x_t - x) / width.clamp_min(1e-9), torch.zeros_like(x))


def _make_heads(features: int = 4, count: int = 2, caption: int = 0, seed: int = 0) -> Heads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Heads([features] * count, 5, caption=caption, normalise=False).double()


@pytest.fixture(scope="session")
def make_heads() -> Callable[..., Heads]:
    """Heads in float64, for the features of `Net`; without the normalisation, which is in float32."""
    return _make_heads


@pytest.fixture(scope="session")
def make_smooth() -> type[Smooth]:
    return Smooth


@pytest.fixture(scope="session")
def make_exact() -> type[Exact]:
    return Exact


@pytest.fixture(scope="session")
def make_solved() -> type[Solved]:
    return Solved


# ------------------------------------------------------------------------------------------------------------ batches


@dataclass
class Draws(Batch):
    """A batch that draws in float64 and remembers it, by kind of call, so that a test can do the same sum by hand."""

    uniforms: list[Tensor] = field(default_factory=list)
    normals: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)  # uniform numbers that come before random ones
    given_normals: list[Tensor] = field(default_factory=list)
    given_noises: list[Tensor] = field(default_factory=list)

    def uniform(self, size: int) -> Tensor:
        drawn = super().uniform(size)
        self.uniforms.append(self.given.pop(0).double() if self.given else drawn)
        return self.uniforms[-1]

    def normal(self, size: int) -> Tensor:
        drawn = super().normal(size)
        self.normals.append(self.given_normals.pop(0).double() if self.given_normals else drawn)
        return self.normals[-1]

    def normal_like(self, x: Tensor) -> Tensor:
        drawn = super().normal_like(x)
        self.noises.append(self.given_noises.pop(0).to(drawn) if self.given_noises else drawn)
        return self.noises[-1]


def _make_batch(count: int, *, seed: int = 0, progress: float = 0.5, spread: float = 1.0, pairs: Pairs | None = None, **more: Any) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(MEANS), (count,), generator=generator)
    mean, std = (table.double()[index][:, :, None, None] for table in (MEANS, STDS))
    x0 = mean + spread * std * torch.randn(count, 2, 1, 1, generator=generator, dtype=F64)
    cond = captions(index)
    return Draws(x0, cond, other(cond), generator, 0, progress, pairs, **more)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Draws]:
    """make_batch(count, seed=0, progress=0.5, spread=1.0): Gaussian data; null is the other Gaussian."""
    return _make_batch


# ------------------------------------------------------------------------------------------------ what a method queries


class Watched(Counted):
    """Also notes the times of every call: (t, r or None, samples, kind)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.conditions: list[Condition] = []

    def _note(self, t: Tensor, r: Tensor | None, cond: Condition) -> None:
        self.calls.append((t.detach().clone(), None if r is None else r.detach().clone()))
        self.conditions.append(cond)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        self._note(t, r, cond)
        return super().__call__(x_t, t, cond, r)

    def through(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        self._note(t, r, cond)
        return super().through(x_t, t, cond, r)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition, blocks: Any) -> list[Tensor]:
        self._note(t, None, cond)
        return super().features(x_t, t, cond, blocks)


def _make_nets(student: nn.Module, ema: nn.Module | None = None, teacher: nn.Module | None = None, **extra: nn.Module) -> Networks:
    ledger = Ledger({name: Cost(1.0, 3.0) for name in ("student", "ema", "teacher")})
    ema, teacher = student if ema is None else ema, Exact("t") if teacher is None else teacher
    return Networks(
        Watched(student, "student", ledger, fixed=Fixed(student)),
        Watched(Fixed(ema), "ema", ledger, no_grad=True),
        Watched(Fixed(teacher), "teacher", ledger, no_grad=True),
        dict(extra),
        last_parameter=lambda: student.slope,
    )


@pytest.fixture(scope="session")
def make_nets() -> Callable[..., Networks]:
    """make_nets(student, ema=student, teacher=exact velocity, **extra): each call counted and its times noted."""
    return _make_nets


# --------------------------------------------------------------------------------------------------------- small sums


def _gradients(loss: Tensor, module: nn.Module, pull: Tensor | None = None) -> Tensor:
    """Of a loss, or of a tensor with `pull` as its own gradient, by the module's parameters, in one row."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, pull, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)])


@pytest.fixture(scope="session")
def gradients() -> Callable[..., Tensor]:
    return _gradients


@pytest.fixture
def refusal(tmp_path) -> Callable[[str, dict], str]:
    """refusal(method, params): the line that a profile with these settings is refused with."""
    import yaml

    from apex.config import check_params, load
    from apex.errors import UserError

    def said(method: str, params: dict) -> str:
        profile = tmp_path / "p.yaml"
        profile.write_text(yaml.safe_dump({"profile": "p", "methods": ["mine"], "rows": {"mine": {"method": method, "params": params}}}))
        with pytest.raises(UserError) as error:
            check_params(load(profile))
        assert "\n" not in str(error.value)
        return str(error.value)

    return said
