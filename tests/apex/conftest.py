"""Fixtures for the core's tests: closed-form Gaussian flows, small untrained transformers, scripted batches."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import QwenImageTransformer2DModel, SanaTransformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from apex.backbones.base import Backbone
from apex.backbones.qwen_image import QwenImageBackbone, pack, unpack
from apex.backbones.sana import SanaBackbone
from apex.conditioning import Condition
from apex.config import load
from apex.data.latents import load_cache
from apex.flow import expand
from apex.loop import Loop
from apex.methods.base import Batch
from tests.processes import Ended, run

CAPTION_WIDTH = 16

# No deadline: a busy machine is not a defect.
hypothesis.settings.register_profile("apex", deadline=None, max_examples=50)
hypothesis.settings.load_profile("apex")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------ Gaussian data, where all is known


@dataclass(frozen=True)
class Gaussian:
    """x ~ N(mean, std^2) per element: the marginal at t is N((1 - t) mean, t^2 + (1 - t)^2 std^2)."""

    mean: float = 0.7
    std: float = 0.6

    def spread(self, t: Tensor) -> Tensor:
        return (t**2 + (1 - t) ** 2 * self.std**2).sqrt()

    def centred(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - (1 - expand(t, x_t)) * self.mean

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[z - x | x_t], the marginal velocity."""
        slope = (t - (1 - t) * self.std**2) / self.spread(t) ** 2
        return expand(slope, x_t) * self.centred(x_t, t) - self.mean

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        return -self.centred(x_t, t) / expand(self.spread(t) ** 2, x_t)

    def flow_map(self, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Where the probability-flow ODE takes x_t from t to r: quantiles are kept."""
        return (1 - expand(r, x_t)) * self.mean + expand(self.spread(r) / self.spread(t), x_t) * self.centred(x_t, t)

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """F(x_t, t, r) of the exact flow map; the instantaneous velocity where r = t."""
        gap = expand((t - r).clamp_min(1e-300), x_t)
        long = (x_t - self.flow_map(x_t, t, r)) / gap
        return torch.where(expand(t - r, x_t) > 0, long, self.velocity(x_t, t))


@pytest.fixture(scope="session")
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture(scope="session")
def make_gaussian() -> type[Gaussian]:
    return Gaussian


# ---------------------------------------------------------------------------------------------- small networks


def _sana(guidance_embeds: bool = False) -> SanaBackbone:
    return SanaBackbone(
        SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=CAPTION_WIDTH,
            mlp_ratio=2.0,
            sample_size=4,
            patch_size=1,
            interpolation_scale=1.0,
            guidance_embeds=guidance_embeds,
        )
    )


def _qwen() -> QwenImageBackbone:
    return QwenImageBackbone(
        QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=CAPTION_WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
    )


def stir(module: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every parameter away from its initial value, zeros included, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return module


def _make_backbone(family: str, target_time: str = "none", stirred: bool = True, seed: int = 0) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = {"sana": _sana, "qwen_image": _qwen}[family]()
    if stirred:
        stir(backbone, seed)
    if target_time == "embedding":
        backbone = backbone.with_target_time()
        if stirred:
            stir(backbone, seed + 1)
    return backbone


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Backbone]:
    """make_backbone("sana" or "qwen_image", "none" or "embedding", stirred=True): latents are (4, 4, 4), captions 16 wide."""
    return _make_backbone


@pytest.fixture(params=["sana", "qwen_image"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def _make_condition(count: int, length: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(count, length, CAPTION_WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.ones(count, length, dtype=dtype)
    mask[0, length - 1 :] = 0  # one caption is shorter
    return Condition(embeds, mask)


@pytest.fixture(scope="session")
def make_condition() -> Callable[..., Condition]:
    return _make_condition


def _stock(transformer: nn.Module, x: Tensor, t: Tensor, cond: Condition, **more: Tensor) -> Tensor:
    """The transformer as diffusers' pipelines call it: Sana's time in [0, 1000], Qwen-Image's in [0, 1] and packed tokens."""
    if isinstance(transformer, SanaTransformer2DModel):
        return transformer(
            x, encoder_hidden_states=cond.embeds, encoder_attention_mask=cond.mask, timestep=1000 * t, return_dict=False, **more
        )[0]
    height, width = x.shape[-2:]
    tokens = transformer(
        hidden_states=pack(x),
        timestep=t,
        encoder_hidden_states=cond.embeds,
        encoder_hidden_states_mask=cond.mask,
        img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        return_dict=False,
        **more,
    )[0]
    return unpack(tokens, height, width)


@pytest.fixture(scope="session")
def stock() -> Callable[..., Tensor]:
    return _stock


class Toy(nn.Module):
    """A smooth velocity network on any latents with all of the protocol: x_t, t, r and a shifted condition matter to it."""

    def __init__(self, elements: int = 4, width: int = 12, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text = nn.Linear(CAPTION_WIDTH, width)
            self.inner = nn.Linear(elements + 2, width)
            self.outer = nn.Linear(width, elements)
        self.double()

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        r = t if r is None else r
        tokens = cond.apply_shift(self.text(cond.embeds.double())).mean(1)
        h = self.inner(torch.cat([x_t.flatten(1).double(), t[:, None].double(), (t - r)[:, None].double()], 1))
        return self.outer(torch.tanh(h + tokens)).reshape(x_t.shape)


@pytest.fixture(scope="session")
def make_toy() -> type[Toy]:
    return Toy


# --------------------------------------------------------------------------------------------- scripted batches


@dataclass
class Scripted(Batch):
    """A batch that remembers what it drew, in order, in float64, so that a test can do the same sum by hand."""

    drawn: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)  # drawn first, in the place of random numbers

    def _keep(self, value: Tensor) -> Tensor:
        value = self.given.pop(0).to(value) if self.given else value
        self.drawn.append(value)
        return value

    def uniform(self, size: int) -> Tensor:
        return self._keep(super().uniform(size))

    def normal_like(self, x: Tensor) -> Tensor:
        return self._keep(super().normal_like(x))


def _make_batch(count: int, *, seed: int = 0, micro_step: int = 0, shape: tuple[int, ...] = (1, 2, 2), dtype=torch.float64) -> Scripted:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype)
    null = Condition(torch.zeros(count, 5, CAPTION_WIDTH, dtype=dtype), torch.ones(count, 5, dtype=dtype))
    return Scripted(x0, _make_condition(count, seed=seed, dtype=dtype), null, generator, micro_step)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Scripted]:
    return _make_batch


class Calls:
    """A network that notes (samples, whether gradient was on, t, r, the condition) of each call."""

    def __init__(self, network: nn.Module, no_grad: bool = False) -> None:
        self.network, self.no_grad, self.calls = network, no_grad, []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        grad = torch.is_grad_enabled() and not self.no_grad
        self.calls.append({"samples": len(x_t), "grad": grad, "t": t.clone(), "r": None if r is None else r.clone(), "cond": cond})
        with torch.set_grad_enabled(grad):
            return self.network(x_t, t, cond, r)

    def samples(self, grad: bool | None = None) -> int:
        return sum(c["samples"] for c in self.calls if grad is None or c["grad"] == grad)


@pytest.fixture(scope="session")
def watch() -> type[Calls]:
    return Calls


@pytest.fixture(scope="session")
def hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights that integrate polynomials up to degree 31 against the standard normal exactly."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


# ------------------------------------------------------------------------------------------------------- small runs


@pytest.fixture
def tiny_profile(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """tiny_profile(rows={...}, train={...}, ...): a profile on the tiny pipeline, a few steps long."""

    def write(**changes: Any) -> Path:
        values = {
            "profile": "tiny",
            "pipeline": str(tiny_pipeline),
            "data": {"scenes": 48},
            "methods": ["fm"],
            "prompts": {"per_task": 1, "images_per_prompt": 2},
            "budget": {"forward_equivalents": 200},
            "nfe": [1, 2],
        }
        train = {"batch_size": 4, "warmup_steps": 2, "log_every": 1, "learning_rate": 2e-3}
        values |= changes | {"train": train | changes.get("train", {})}
        path = tmp_path / "profile.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def make_loop(tiny_profile: Callable[..., Path], tiny_cache: Path, tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    """make_loop("fm", resume="a", params={}, tuning="full", seed=0, cache=None, **profile): a loop as `apex.train` makes it."""

    def make(
        method: str,
        *,
        resume: str = "resume",
        params: dict | None = None,
        tuning: str = "full",
        lora: dict | None = None,
        seed: int = 0,
        embeddings: Path | None = None,
        cache: Path = tiny_cache,
        **profile: Any,
    ) -> Loop:
        AcceleratorState._reset_state(True)  # one process, several precisions
        rows = {"row": {"method": method, "tuning": tuning, "lora": lora or {"rank": 2}, "params": params or {}}}
        config = load(tiny_profile(rows=rows, methods=["row"], **profile))
        return Loop(config.run_config("row"), config.run_hash("row"), seed, load_cache(cache), tmp_path / resume, config, embeddings)

    yield make
    AcceleratorState._reset_state(True)


def _plain_tensors(state: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in state.values():
        if is_traceable_wrapper_subclass(value):
            found += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        elif isinstance(value, Tensor):
            found.append(value)
    return found


@pytest.fixture(scope="session")
def plain_tensors() -> Callable[[dict[str, Any]], list[Tensor]]:
    """plain_tensors(optimizer.state[parameter]): what it is made of, where a moment of 8 bits is three tensors: bytes, scales, table."""
    return _plain_tensors


@pytest.fixture(scope="session")
def qwen_pipeline(tiny_pipeline: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a Qwen-Image transformer for the same latents and captions."""
    latents = load_cache(tiny_cache).latents
    width = json.loads((tiny_pipeline / "text_encoder" / "config.json").read_text())["d_model"]
    folder = tmp_path_factory.mktemp("qwen") / "pipeline"
    shutil.copytree(tiny_pipeline, folder, ignore=shutil.ignore_patterns("transformer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * latents.shape[1],
            out_channels=latents.shape[1],
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            axes_dims_rope=(4, 6, 6),
        )
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def processes() -> Callable[..., list[Ended]]:
    """processes(script, arguments, count=2, **environment): the script's processes, which find each other, after their end."""
    return run
