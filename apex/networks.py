"""The networks of a run around one student: the frozen teacher, the running mean, and what extra networks are built from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from apex.backbones.base import Backbone
from apex.conditioning import Condition
from apex.config import RunConfig
from apex.ema import Ema
from apex.errors import UserError
from apex.lora import configuration
from apex.methods.base import STUDENT, Method, Role, Setup, frozen
from apex.pipeline import DTYPES, Decoder, EncoderFeatures, Pipeline


@contextmanager
def kept_activations(student: nn.Module) -> Iterator[None]:
    """Without gradient checkpointing: the backward pass would recompute activations with weights that are no longer in place."""
    transformer = getattr(student, "transformer", None)
    checkpointing = torch.is_grad_enabled() and getattr(transformer, "gradient_checkpointing", False)
    if checkpointing:
        transformer.disable_gradient_checkpointing()
    try:
        yield
    finally:
        if checkpointing:
            transformer.enable_gradient_checkpointing()


class Base(nn.Module):
    """The teacher of a LoRA run: the student with its adapter switched off, so no second copy is kept."""

    def __init__(self, student: Backbone) -> None:
        super().__init__()
        self.student = student

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.student.transformer.disable_adapters()
        try:
            with frozen(self.student), kept_activations(self.student):
                return self.student(*args, **kwargs)
        finally:
            self.student.transformer.enable_adapters()


class Averaged(nn.Module):
    """The student under its running mean. Gradient passes to its inputs, never to a parameter."""

    def __init__(self, student: nn.Module, ema: Ema) -> None:
        super().__init__()
        self.student, self.ema = student, ema
        self.names = [name for name, p in student.named_parameters() if p.requires_grad]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with frozen(self.student), kept_activations(self.student):
            if not self.ema.active:
                return self.student(*args, **kwargs)
            if isinstance(next(self.student.parameters()), DTensor):  # split over processes; queried without gradient
                with torch.no_grad(), self.ema.applied():
                    return self.student(*args, **kwargs)
            mean = dict(zip(self.names, self.ema.shadow, strict=True))
            return torch.func.functional_call(self.student, mean, args, kwargs)

    def weights(self) -> dict[str, Tensor]:
        """The student's state with the running mean in its place."""
        state = {k: v.detach() for k, v in self.student.state_dict().items()}
        return state | (dict(zip(self.names, self.ema.shadow, strict=True)) if self.ema.active else {})


class Fixed(nn.Module):
    """The student with frozen parameters."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with frozen(self.student), kept_activations(self.student):
            return self.student(*args, **kwargs)


def last_matrix(network: nn.Module) -> nn.Parameter:
    """The trained matrix nearest to a velocity network's output (modules stand in the order of their use)."""
    stock = getattr(network, "transformer", network)  # not what a backbone adds around it
    return [p for p in stock.parameters() if p.requires_grad and p.ndim > 1][-1]


def parameters_by_role(method: Method, student: nn.Module, extra: Mapping[str, nn.Module]) -> dict[Role, list[nn.Parameter]]:
    """Role -> the parameters that its optimiser trains, the student's first; a role without any is left out."""
    roles: dict[Role, list[nn.Parameter]] = {STUDENT: [p for p in student.parameters() if p.requires_grad]}
    for name, module in extra.items():
        if trained := [p for p in module.parameters() if p.requires_grad]:
            roles.setdefault(method.roles().get(name, STUDENT), []).extend(trained)
    return roles


Make = Callable[[torch.dtype], Backbone]  # a new copy of the pretrained network, in this dtype


def build_student(run: RunConfig, method: Method, make: Make, device: torch.device) -> tuple[Backbone, nn.Module | None]:
    """The network to train, set up for the method and the tuning, and the frozen teacher (None where it is the student)."""
    lora = run.tuning == "lora"
    frozen_dtype = DTYPES[run.train.frozen]
    student = make(frozen_dtype if lora else torch.float32)
    if run.tuning not in method.tunings:
        raise UserError(
            f"row {run.row}: method {method.name} does not support tuning {run.tuning!r}"
            + (f": {method.no_lora}" if run.tuning == "lora" and method.no_lora else "")
            + f"; expected one of {', '.join(method.tunings)}"
        )
    if lora:
        if method.time_scale != 1.0:
            raise UserError(
                f"row {run.row}: time_scale: found {method.time_scale:g} with tuning 'lora', expected 1: the teacher is the student "
                "without its adapter, and keeps its own time embedding; take tuning 'full'"
            )
        student.requires_grad_(False)
        student.transformer.add_adapter(configuration(run.lora.rank, run.lora.alpha, student.lora_targets))
        for parameter in student.parameters():
            if parameter.requires_grad:  # what is trained is fp32, whatever its base is kept in
                parameter.data = parameter.data.float()
        return student.to(device), None
    teacher = make(frozen_dtype).eval().requires_grad_(False).to(device) if "teacher" in method.needs else None
    if method.target_time == "embedding":
        student = student.with_target_time()
    try:
        student = student.with_time_scale(method.time_scale)
    except UserError as error:
        raise UserError(f"row {run.row}: {error}") from None
    return student.to(device), teacher


def make_setup(
    student: Backbone, pipeline: Pipeline | None, make: Make, device: torch.device, shape: tuple[int, ...], cond: Condition
) -> Setup:
    """What the method's extra networks are built from; without a pipeline there is no codec."""

    @torch.no_grad()
    def feature_shapes(blocks: Sequence[int]) -> list[tuple[int, int]]:
        t = torch.full((1,), 0.5, device=device)
        found = student.features(torch.zeros(1, *shape, device=device), t, cond.to(device), blocks)
        return [tuple(f.shape[1:]) for f in found]

    return Setup(
        copy=lambda: make(torch.float32).to(device),
        latent_shape=shape,
        blocks=len(student.blocks),
        feature_shapes=feature_shapes,
        decoder=Decoder(pipeline) if pipeline else None,
        encoder=EncoderFeatures(pipeline) if pipeline else None,
        caption_width=cond.embeds.shape[-1],
    )
