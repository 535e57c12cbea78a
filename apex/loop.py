"""The one training loop. A method brings losses; the loop brings optimisers, EMA, budget, checkpoints and export.

`python -m apex.train` is its command: `Loop` holds state and steps of one run, `Loop.fit` runs it to the end of its budget.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from apex import busy, methods, optimizers, provenance, sharding
from apex.backbones.base import Backbone
from apex.budget import Cost, Counted, Ledger, count_calls, measure_cost
from apex.conditioning import AffineShift, Condition, shift_visibility
from apex.config import Config, RunConfig, fingerprint, locate
from apex.data.captions import CaptionShards
from apex.data.latents import Cache
from apex.data.overlap import overlaps
from apex.ema import Ema
from apex.errors import UserError, check_format, on_sigterm, refuse_special
from apex.export import MADE_FORMATS, export_run
from apex.files import atomic_file, atomic_folder, read_object, write_atomic
from apex.gpu import repeatable
from apex.kinds import RUN
from apex.linear import through_onednn
from apex.memory import PeakMemory, megabytes
from apex.methods.base import STUDENT, Batch, Method, Networks, Step
from apex.networks import Averaged, Base, Fixed, build_student, last_matrix, make_setup, parameters_by_role
from apex.pairs import PairStore, make_pairs, pair_count
from apex.pipeline import DTYPES, CaptionStream, CaptionTable, Pipeline, empty_like, load_backbone
from apex.seeds import derive, torch_generator
from apex.weights import finite

PROBE_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Diverged(UserError):
    """A loss or a gradient is not finite, or the loss exploded. `short`: what and when, for the tables."""

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short


class Stopped(UserError):
    """SIGTERM came while a run trained; its state is saved."""


STATE_FORMAT = 1  # of what a run continues from
EXPLODED = 1e3  # times the first hundred steps' mean loss


def learning_rate(run: RunConfig, step: int, progress: float) -> float:
    """Warm-up by steps, then decay by the share of the budget that is spent."""
    train = run.train
    rate = train.learning_rate * min(1.0, (step + 1) / max(train.warmup_steps, 1))
    left = max(0.0, 1.0 - progress)
    return rate * {"none": 1.0, "linear": left, "sqrt": math.sqrt(left), "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}[train.decay]


class Loop:
    """State and steps of one run. `fit` runs it to the end of its budget."""

    def __init__(
        self, run: RunConfig, run_hash: str, seed: int, cache: Cache, resume: Path, sampling: Config, embeddings: Path | None = None
    ) -> None:
        """embeddings: the folder of apex.data.embeddings, where `data.embeddings` is disk."""
        self.run, self.hash, self.seed, self.resume, self.profile = run, run_hash, seed, resume, sampling
        train = run.train
        # Autocast keeps the bf16 copy of a weight that it has seen; a split weight's memory holds other values at the next query.
        autocast = AutocastKwargs(cache_enabled=not sharding.asked())
        precision = "bf16" if train.precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[autocast])
        device = self.accelerator.device
        repeatable(device.type)
        optimizers.check(train.optimizer, device)
        self.main = self.accelerator.is_main_process
        self.sharded = sharding.asked() and self.accelerator.num_processes > 1
        set_seed(derive(seed, "weights") % 2**32)
        self.method: Method = methods.get(run.method, run.method_files)(run.params)
        pipeline, self.captions = self.frozen_parts(cache, embeddings)
        self.latents, self.index, self.left_out = cache.latents, cache.caption_index, cache.left_out
        # Before anything is trained: a prompt file with a fault is one line now, and not at the end.
        prompts = {split: sampling.prompts_path(split) for split in sampling.sampled}
        counts = torch.bincount(cache.caption_index, minlength=len(cache.captions)).tolist()
        self.prompts_seen = overlaps(prompts, cache.captions, counts)
        shape = tuple(cache.latents.shape[1:])
        longest = self.captions.longest()
        student, teacher = self.networks()
        if train.gradient_checkpointing:
            student.transformer.enable_gradient_checkpointing()
        self.student = student
        setup = make_setup(student, pipeline, self.make, device, tuple(cache.latents.shape[1:]), longest)
        self.extra = {name: module.to(device) for name, module in self.method.extra_networks(setup).items()}
        # Not the heads of a discriminator: the penalty on their gradients is differentiated twice, where bits differ.
        through_onednn(*(n for n in (student, teacher, *self.extra.values()) if isinstance(n, Backbone)))
        self.parameters = {
            "student": sum(p.numel() for p in student.parameters()),
            "trainable": sum(p.numel() for m in (student, *self.extra.values()) for p in m.parameters() if p.requires_grad),
        }
        # Decay 1 means the frozen base where a method says so (`teacher`), and the online network elsewhere: no mean is kept.
        self.ema = Ema(student.parameters(), train.ema if train.ema < 1 else 0.0)
        roles = parameters_by_role(self.method, student, self.extra)
        self.rates = {role: self.method.rates().get(role, 1.0) for role in roles}
        self.optimizers = {role: optimizers.make(train, p, device) for role, p in roles.items()}
        if self.sharded:  # its autocast alone: the weights are split already
            wrapped = self.accelerator.prepare_model(student, device_placement=False, evaluation_mode=True)
        else:
            wrapped = self.accelerator.prepare(student)
        self.wrapped = wrapped
        base = teacher if teacher is not None else Base(student) if run.tuning == "lora" else None
        costs = self.costs(base, shape, longest)
        costs["ema"] = costs["student"]
        self.unit = costs["teacher"].forward
        self.ledger = Ledger(costs)
        averaged = Averaged(student, self.ema)
        self.nets = Networks(
            student=Counted(wrapped, "student", self.ledger, fixed=Fixed(student)),
            ema=Counted(averaged, "ema", self.ledger, no_grad=True),
            teacher=Counted(base if base is not None else self.no_teacher, "teacher", self.ledger, no_grad=True),
            extra=self.extra,
            weights=averaged.weights,
            last_parameter=lambda: last_matrix(student),
        )
        if self.sharded:
            self.nets.weights = sharding.refusing(run.row, "the student's whole weights")
            self.nets.last_parameter = sharding.refusing(run.row, "the gradients of one whole matrix")
            self.nets.student.jvp = sharding.refusing(run.row, "directional derivatives")
        for name, module in self.extra.items():
            count_calls(module, name, self.ledger, longest)
        self.teacher = teacher
        self.pairs: PairStore | None = None
        self.memory: dict[str, float] = {}
        self.stopped = ""
        self.moved = True  # whether the last step changed the student: its running mean follows its updates
        self.step, self.flops, self.seconds, self.rows, self.first_losses = 0, 0.0, 0.0, [], []
        self.load: dict[str, Any] | None = None  # of this process's share of `seconds`, not of calls before it
        self.visibility: dict[float, float] = {}

    def frozen_parts(self, cache: Cache, embeddings: Path | None) -> tuple[Pipeline, CaptionTable | CaptionStream | CaptionShards]:
        """The pipeline's codec and text encoder, without the latter where embeddings are read from disk, and the captions' conditions."""
        run, device, folder = self.run, self.accelerator.device, locate(self.run.pipeline)
        kind = run.data.embeddings
        if (kind == "disk") != (embeddings is not None):
            raise UserError(
                f"row {run.row}: --embeddings: found {embeddings or 'none'} with data.embeddings {kind}, expected "
                + ("a folder that python -m apex.data.embeddings made" if kind == "disk" else "none, or data.embeddings disk")
            )
        pipeline = Pipeline(folder, str(device), DTYPES[run.train.frozen], text=kind != "disk")
        if embeddings is not None:
            verify = self.accelerator.is_local_main_process
            return pipeline, CaptionShards(embeddings, folder, cache.captions, run.train.frozen, device, verify=verify)
        return pipeline, (CaptionTable if kind == "memory" else CaptionStream)(pipeline, cache.captions)

    def make(self, dtype: torch.dtype) -> Backbone:
        """A new copy of the pretrained network."""
        return load_backbone(locate(self.run.pipeline) / "transformer", dtype=dtype)

    def networks(self) -> tuple[Backbone, Backbone | None]:
        """The student and its frozen teacher on the device; split over the processes where the launcher asks for it."""
        device = self.accelerator.device
        if not self.sharded:
            return build_student(self.run, self.method, self.make, device)
        mesh = init_device_mesh(device.type, (self.accelerator.num_processes,))
        for process in range(self.accelerator.num_processes):  # in turn: the host's memory holds one whole copy at a time
            if process == self.accelerator.process_index:
                student, teacher = build_student(self.run, self.method, self.make, torch.device("cpu"))
                for network in filter(None, (student, teacher)):
                    sharding.shard(network, mesh)
            self.accelerator.wait_for_everyone()
        return student, teacher

    def costs(self, base: nn.Module | None, shape: tuple[int, ...], longest: Condition) -> dict[str, Cost]:
        """FLOPs a sample of the student's and the teacher's passes."""
        if self.sharded:  # measured where there are no shares: on the meta device
            folder, empty = locate(self.run.pipeline) / "transformer", torch.device("meta")
            longest = longest.to(empty)
            run = self.run.model_copy(update={"train": self.run.train.model_copy(update={"frozen": "fp32"})})
            with empty:
                student, _ = build_student(run, self.method, lambda dtype: empty_like(folder, dtype), empty)
            if run.train.gradient_checkpointing:  # what is computed again is spent again
                student.transformer.enable_gradient_checkpointing()
            return {"student": measure_cost(student, shape, longest), "teacher": measure_cost(empty_like(folder), shape, longest)}
        if base is not None:
            teacher = measure_cost(base, shape, longest)
        else:  # the stock network tells the unit of the budget, and is not kept
            teacher = Cost(measure_cost(self.make(torch.float32).to(self.accelerator.device), shape, longest).forward)
        return {"student": measure_cost(self.student, shape, longest), "teacher": teacher}

    def no_teacher(self, *_: Any, **__: Any) -> Tensor:
        raise UserError(f"{methods.where(self.method)}: losses() queries the teacher; name it in `needs`")

    # ------------------------------------------------------------------------------------- the loop
    def batch(self, micro: int) -> Batch:
        """The micro-batch of this step and process; every process draws the same global batch and takes its slice."""
        size, rank, world = self.run.train.batch_size, self.accelerator.process_index, self.accelerator.num_processes
        chosen = torch.randint(len(self.latents), (size * world,), generator=torch_generator(self.seed, "data", self.step, micro))
        chosen = chosen[rank * size : (rank + 1) * size]
        device = self.accelerator.device
        return Batch(
            self.latents[chosen].float().to(device),
            self.captions[self.index[chosen]].to(device),
            self.captions.null(size).to(device),
            torch_generator(self.seed, "noise", self.step, micro, rank),
            self.step * self.run.train.gradient_accumulation + micro,
            min(self.spent() / self.run.budget.forward_equivalents, 1.0),
            self.pairs.draw(size, torch_generator(self.seed, "pairs", self.step, micro, rank)) if self.pairs else None,
        )

    def spent(self) -> float:
        """Teacher forward-equivalents so far, over all processes."""
        return self.flops / self.unit

    def count(self, before: float) -> None:
        """Adds this step's FLOPs of all processes, which differ where passes depend on the drawn times: all must end together."""
        added = torch.tensor(self.ledger.flops() - before, dtype=torch.float64)
        self.flops += float(self.accelerator.reduce(added.to(self.accelerator.device), "sum"))

    def one_step(self) -> dict[str, float]:
        """One optimiser step; returns what to log. Raises `UserError` on a loss that is not finite or exploded."""
        train = self.run.train
        progress = self.spent() / self.run.budget.forward_equivalents
        rate = learning_rate(self.run, self.step, progress)
        for role, optimizer in self.optimizers.items():
            optimizers.set_rate(optimizer, rate * self.rates[role])
        if self.moved:
            self.ema.update()
        counted = self.ledger.flops()
        logged: dict[str, float] = {}
        for micro in range(train.gradient_accumulation):
            with self.accelerator.autocast():
                out = self.checked(self.method.losses(self.batch(micro), self.nets, self.step))
            for role, loss in out.losses.items():
                value = float(self.accelerator.reduce(loss.detach(), "mean"))  # one value for all processes: they stop together
                self.check(value, role)
                self.accelerator.backward(loss / train.gradient_accumulation)
                logged[f"loss/{role}" if role != STUDENT else "loss"] = value
            logged |= {k: float(v) for k, v in out.logs.items()}
        if self.accelerator.num_processes > 1:  # accelerate averages the student's gradients alone
            for module in self.extra.values():
                for parameter in filter(lambda p: p.grad is not None, module.parameters()):
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        for role in out.losses:
            optimizer = self.optimizers[role]
            norm = sharding.clip_grad_norm(optimizer, train.max_grad_norm or math.inf)
            if not torch.isfinite(norm):
                self.stop(f"the gradient norm of {role} is {float(norm)}")
            logged["grad_norm" if role == STUDENT else f"grad_norm/{role}"] = float(norm)
            optimizer.step()
            optimizer.zero_grad()
        self.moved = STUDENT in out.losses
        self.step += 1
        self.count(counted)
        return {"learning_rate": rate, **logged}

    def checked(self, out: Any) -> Step:
        """What `losses` returned, or one line about the method's file."""
        where, roles = methods.where(self.method), ", ".join(self.optimizers)
        if not isinstance(out, Step) or not out.losses:
            raise UserError(f"{where}: losses() returned {type(out).__name__}; expected a Step with a loss for one or more of: {roles}")
        for role, loss in out.losses.items():
            if role not in self.optimizers:
                raise UserError(f"{where}: losses() has the role {role!r}, which trains nothing; expected one or more of: {roles}")
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise UserError(f"{where}: the loss of {role} is {found}; expected a scalar tensor with gradient")
        return out

    def check(self, loss: float, role: str) -> None:
        if not math.isfinite(loss):
            self.stop(f"the loss of {role} is {loss}")
        if role != STUDENT:
            return
        if len(self.first_losses) < 100:
            self.first_losses.append(abs(loss))
        elif abs(loss) > EXPLODED * max(sum(self.first_losses) / 100, 1e-6):
            self.stop(f"the loss exploded to {loss:.3g}")

    def stop(self, what: str) -> None:
        kept = f"the last good state is kept in {self.resume}; " if (self.resume / self.state_file()).exists() else ""
        raise Diverged(
            f"row {self.run.row}, seed {self.seed}: {what} at step {self.step}; {kept}"
            "lower train.learning_rate or train.max_grad_norm for this row and run again",
            f"{what} at step {self.step}, after {100 * self.spent() / self.run.budget.forward_equivalents:.0f}% of the budget",
        )

    def probe(self) -> None:
        """Measures before training whether the network sees the method's shift; part of the record."""
        shift = self.extra.get("shift")
        if not isinstance(shift, AffineShift):
            return
        device = self.accelerator.device
        rows = torch.arange(min(64, len(self.latents)))
        found = shift_visibility(
            self.student,
            self.latents[rows].float().to(device),
            self.captions[self.index[rows]].to(device),
            shift,
            PROBE_TIMES,
            torch_generator(self.seed, "probe"),
        )
        self.visibility = {k: round(v, 4) for k, v in found.items()}
        mean = sum(found.values()) / len(found)
        if not self.main:
            return
        verdict = (
            "too weak: the network hardly sees it"
            if mean < 0.1
            else "strong: far outside what it was trained on"
            if mean > 3
            else "visible"
        )
        print(f"shift visibility (1 = another caption): {mean:.3f}, {verdict}; by time {self.visibility}", flush=True)

    def make_pairs(self) -> None:
        """The teacher-made pairs that the method asks for; what they cost is spent before the first step."""
        plan = self.method.pairs()
        if plan is None:
            return
        if self.sharded:
            sharding.refuse(self.run.row, "teacher-made pairs")
        budget, device = self.run.budget.forward_equivalents, self.accelerator.device
        count = pair_count(plan, budget)
        if count * plan.passes >= budget:
            raise UserError(
                f"row {self.run.row}: {count} teacher-made pairs of {plan.passes} passes each leave nothing of the budget of {budget:g} "
                "forward-equivalents; raise the budget or lower the method's steps or share of pairs"
            )
        with self.accelerator.main_process_first():  # the others read what the first one made
            self.pairs = make_pairs(
                plan,
                count,
                self.nets.teacher.fixed,
                self.captions.__getitem__,
                self.captions.null,
                self.index,
                tuple(self.latents.shape[1:]),
                self.resume / "pairs",
                self.seed,
                device,
                lambda line: print(f"{self.run.row} seed {self.seed}: {line}", flush=True),
            )
        if self.step == 0:
            self.ledger.count("teacher", count * plan.passes, "forward")
            self.flops = self.ledger.flops()

    def trial(self, watched: AbstractContextManager | None = None) -> None:
        """One forward and backward pass, inside `watched`, that leaves no trace in the run, also where it fails half way."""
        passes, buffers = self.ledger.state()["passes"], {k: v.clone() for k, v in self.trained().items() if k.split(".")[0] in self.extra}
        # Gradients are not averaged: DDP would wait for the rest of an average that a failing pass has begun. A split network's are, for
        # they would be held whole otherwise.
        own = nullcontext() if self.sharded else self.accelerator.no_sync(self.wrapped)
        try:
            with torch.random.fork_rng(), own, watched or nullcontext(), self.accelerator.autocast():
                out = self.checked(self.method.losses(self.batch(0), self.nets, self.method.cycle() - 1))
                for loss in out.losses.values():
                    self.accelerator.backward(loss)
        finally:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            self.ledger.passes = passes
            now = self.trained()
            for name, value in buffers.items():
                now[name].data.copy_(value)

    def settle(self) -> None:
        """On a GPU, asks for one order of sums in every training pass; where an operation has none, says which, and goes on without."""
        device = self.accelerator.device.type
        if device != "cuda":
            return
        repeatable(device, strict=True)
        try:
            self.trial()
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            repeatable(device)
            if self.main:
                print(f"warning: {self.run.row}: the last digits of a run differ from another's of its seed: {str(error).split(',')[0]}")

    def measure_memory(self) -> None:
        """Peak memory of one forward and backward pass and what stands beside it, in MB; leaves no trace in the run."""
        peak = PeakMemory()
        self.trial(peak)
        trained = [sharding.local(p).numel() for o in self.optimizers.values() for p in sharding.parameters(o)]
        parts = {
            "student": megabytes(self.student.parameters()),
            "teacher": megabytes(self.teacher.parameters()) if self.teacher is not None else 0.0,
            "extra": megabytes(p for m in self.extra.values() for p in (*m.parameters(), *m.buffers())),
            "ema": megabytes(self.ema.shadow),
            "optimizer": sum(optimizers.moment_bytes(self.run.train.optimizer, values) for values in trained) / 2**20,
            "step": peak.peak / 2**20,  # activations, gradients, temporaries
        }
        self.memory = {k: round(v, 2) for k, v in parts.items()} | {"total": round(sum(parts.values()), 2)}

    def fit(self, max_steps: int | None = None) -> bool:
        """Runs until the budget is spent, or `max_steps` more steps; returns whether the budget is spent."""
        self.restore()
        if self.step == 0 and (self.main or self.sharded):
            self.probe()
        started = time.time()
        self.make_pairs()
        self.settle()
        if self.step == 0:
            self.seconds += time.time() - started
            self.measure_memory()
        budget = self.run.budget.forward_equivalents
        started = saved = said = time.time()
        before = busy.read()
        first, spent_at_start = self.step, self.spent()
        loss = "–"  # of the last step that updated the student: some update the discriminator or the fake score alone
        asked: list[int] = []
        stopped = False
        with on_sigterm(lambda number, _: asked.append(number)):
            while self.spent() < budget and (max_steps is None or self.step - first < max_steps):
                logged = self.one_step()
                loss = f"{logged['loss']:.4f}" if "loss" in logged else loss
                now = time.time()
                elapsed = self.seconds + now - started
                if self.step % self.run.train.log_every == 0 or self.spent() >= budget:
                    self.rows.append(
                        {"step": self.step, "wall_seconds": round(elapsed, 3), "forward_equivalents": round(self.spent()), **logged}
                    )
                if self.main and now - said > 10:
                    spent = self.spent()
                    left = (budget - spent) * (now - started) / (spent - spent_at_start)
                    print(
                        f"{self.run.row} seed {self.seed}: step {self.step}, {100 * spent / budget:.1f}% of the budget, loss {loss}, "
                        f"{max(left, 0):.0f} s left",
                        flush=True,
                    )
                    said = now
                if self.due(now - saved > self.run.train.checkpoint_every):
                    self.save(elapsed)
                    saved = time.time()
                if stopped := self.any(bool(asked)):
                    break
            self.seconds += time.time() - started
            self.load = busy.between(before, busy.read())
            if not self.finite():
                self.stop("a trained weight is not finite")
            self.save(self.seconds)
        done = self.spent() >= budget
        if stopped and not done:
            raise Stopped(
                f"row {self.run.row}, seed {self.seed}: stopped by SIGTERM at step {self.step}; the state is saved in {self.resume}: "
                "run the same command to go on from there"
            )
        return done

    def due(self, by_the_clock: bool) -> bool:
        """Whether to save now, by the first process's clock: where weights are split, all of them save."""
        return self.any(by_the_clock and self.main) if self.sharded else by_the_clock

    def any(self, said: bool) -> bool:
        """Whether one of the processes says so; all of them must ask."""
        if self.accelerator.num_processes == 1:
            return said
        return bool(self.accelerator.reduce(torch.tensor(float(said), device=self.accelerator.device), "sum"))

    # ----------------------------------------------------------------------------- saving and resuming
    def state_file(self, step: int | None = None) -> str:
        """What holds this process's state: `state.pt`, the first process's; or each its own where weights are split."""
        if not self.sharded:
            return "state.pt"
        return "shares.json" if step is None else f"state-{step}-{self.accelerator.process_index}.pt"

    def trained(self) -> dict[str, Tensor]:
        """All that training changes, by name; of extra networks everything but what is marked `constant` (pretrained and frozen)."""
        named = {f"student.{k}": p for k, p in self.student.named_parameters() if p.requires_grad}
        for name, module in self.extra.items():
            if not getattr(module, "constant", False):
                named |= {f"{name}.{k}": p for k, p in (*module.named_parameters(), *module.named_buffers())}
        return named

    def finite(self) -> bool:
        """Whether all that is trained, and its running mean, is finite, in all processes where weights are split."""
        good = all(map(finite, (*map(sharding.local, self.trained().values()), *self.ema.shadow)))
        return not self.any(not good) if self.sharded else good

    def save(self, elapsed: float) -> None:
        """Writes the state to continue from; if weights are not finite, the state before stays, because it is the last good one."""
        if not (self.main or self.sharded) or not self.finite():
            return
        state = {
            "format": STATE_FORMAT,
            "hash": self.hash,
            "seed": self.seed,
            "processes": self.accelerator.num_processes,
            "step": self.step,
            "seconds": elapsed,
            "rows": self.rows,
            "first_losses": self.first_losses,
            "visibility": self.visibility,
            "memory": self.memory,
            "flops": self.flops,
            "ledger": self.ledger.state(),
            "moved": self.moved,
            "trained": {k: sharding.local(p) for k, p in self.trained().items()},
            "ema": self.ema.state(),
            "optimizers": {role: sharding.optimizer_state(o) for role, o in self.optimizers.items()},
        }
        with atomic_file(self.resume / self.state_file(self.step)) as file:
            torch.save(state, file)
        if self.sharded:
            self.publish()
        if self.main:
            write_atomic(self.resume / "log.csv", log_text(self.rows))

    def publish(self) -> None:
        """Makes the shares that all processes have written the state to continue from, and removes those before."""
        self.accelerator.wait_for_everyone()
        if self.main:
            about = {"step": self.step, "processes": self.accelerator.num_processes}
            write_atomic(self.resume / self.state_file(), json.dumps(about))
        self.accelerator.wait_for_everyone()
        mine = self.state_file(self.step)
        for old in self.resume.glob(f"state-*-{self.accelerator.process_index}.pt"):
            if old.name != mine:
                old.unlink()

    def saved_state(self) -> Path | None:
        """The file that this process continues from; None: from the start.

        Raises:
            UserError: the state is of another number of processes, or of a run that was started another way.
        """
        path = self.resume / self.state_file()
        other = self.resume / ("state.pt" if self.sharded else "shares.json")
        if not path.exists() and other.exists():
            found, now = ("whole", "split over processes") if self.sharded else ("split over processes", "whole")
            raise UserError(
                f"{other}: found the state of a run whose weights are {found}, expected {now}: start it as it was begun, or remove "
                f"{self.resume} to start again"
            )
        if not self.sharded or not path.exists():
            return path if path.exists() else None
        about = read_object(path, f"remove {self.resume} to start again")
        for key in ("processes", "step"):
            if type(about.get(key)) is not int:
                raise UserError(f"{path}: {key}: found {about.get(key)!r}, expected a whole number; remove {self.resume} to start again")
        if about["processes"] != self.accelerator.num_processes:
            raise UserError(
                f"{path}: found the shares of {about['processes']} processes, expected {self.accelerator.num_processes}: start it with as "
                f"many, or remove {self.resume} to start again"
            )
        return self.resume / self.state_file(about["step"])

    def restore(self) -> None:
        path = self.saved_state()
        if path is None:
            return
        refuse_special(path, "remove it to start this run again")
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            check_format(state["format"], {STATE_FORMAT}, f"{path}: format", "remove the folder to start again")
            found, expected = (f"{h}, seed {seed}" for h, seed in ((state["hash"], state["seed"]), (self.hash, self.seed)))
            if found != expected:
                raise UserError(
                    f"{path}: checkpoint of another configuration ({found}; expected {expected}); remove the folder to start again"
                )
            now = self.accelerator.num_processes
            if (begun := state.get("processes", now)) != now:  # the batch, and with it the course of training, follows their number
                raise UserError(
                    f"{path}: found the state of a run of {begun} processes, expected {now}: start it with as many, or remove "
                    f"{self.resume} to start again"
                )
            for name, parameter in self.trained().items():
                sharding.local(parameter).copy_(state["trained"][name])
            self.ema.restore(state["ema"])
            for role, optimizer in self.optimizers.items():
                sharding.load_optimizer(optimizer, state["optimizers"][role])
            self.ledger.restore(state["ledger"])
            self.flops, self.moved = state["flops"], state["moved"]
            self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
            self.first_losses, self.visibility, self.memory = state["first_losses"], state["visibility"], state["memory"]
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise UserError(
                f"{path}: the checkpoint cannot be read ({type(error).__name__}); it is damaged: remove it to start this run again"
            ) from error
        if self.main:
            print(f"continuing {self.run.row} seed {self.seed} from step {self.step}", flush=True)

    def whole_student(self) -> Backbone | None:
        """The first process's copy of the network as it is now, with all its weights, on the CPU; None on the others.

        Where weights are split all processes must ask; a whole one is the student itself.
        """
        if not self.sharded:
            return self.student
        student = build_student(self.run, self.method, self.make, torch.device("cpu"))[0] if self.main else None
        into = dict(student.named_parameters()) if student else {}
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                if parameter.requires_grad:
                    gathered = sharding.whole(parameter)
                    if student:
                        into[name].copy_(gathered)
        return student

    def export(self, out: Path) -> None:
        """Writes the run's weights (the running mean where one is kept) and its record to `out`. All processes call it, one writes."""
        with self.ema.applied() if 0 < self.run.train.ema < 1 else nullcontext():
            student = self.whole_student()
            if self.main:
                self.write(out, student)

    def write(self, out: Path, student: Backbone) -> None:
        sampling = self.profile.sampling
        recipe = {
            "base": self.run.pipeline,
            "mode": sampling.mode or self.method.sample_mode,
            "sigmas": {str(k): v for k, v in sampling.sigmas.items()},
        }
        device = str(self.accelerator.device)
        made = {
            "format": max(MADE_FORMATS),
            "row": self.run.row,
            "method": self.method.name,
            "family": self.method.family,
            "citation": self.method.citation,
            "revision": self.method.revision,
            "variant": self.run.variant,
            "tuning": self.run.tuning,
            "backbone": self.student.family,
            "profile": self.profile.profile,
            "hub": self.profile.hub,
            "seed": self.seed,
            "run": self.run.model_dump(mode="json"),
            "params": self.method.params.model_dump(mode="json"),
            "run_hash": self.hash,
            "config_hash": self.profile.hash(),
            "teacher": fingerprint(self.profile.pipeline_path),
            "git_commit": provenance.git_commit(),
            "hardware": provenance.hardware(device),
            "processes": self.accelerator.num_processes,
            "split": self.sharded,
            "versions": provenance.versions(),
            "parameters": self.parameters["student"],
            "trainable_parameters": self.parameters["trainable"],
            "latent_size": self.latents.shape[-1],
            "shift_visibility": self.visibility,
            "prompts_seen": self.prompts_seen,
            **({"left_out": self.left_out} if self.left_out else {}),
            "training": {
                "flops": self.flops,
                "forward_equivalents": round(self.spent()),
                "passes": self.ledger.passes,
                "flops_by_network": self.ledger.flops_of(),
                "memory_mb": self.memory,
                "wall_seconds": round(self.seconds, 1),
                "load": self.load if self.accelerator.num_processes == 1 else None,  # other processes of the run are no others
                "steps": self.step,
                "peak_memory_mb": provenance.peak_memory_mb(device),
                "stopped": self.stopped,
            },
        }
        if "shift" in self.extra:
            made["shift"] = {k: float(v) for k, v in self.extra["shift"].state_dict().items()}
        with atomic_folder(out, RUN) as folder:
            export_run(folder, student, tuning=self.run.tuning, recipe=recipe, made=made)
            (folder / "log.csv").write_text(log_text(self.rows))


def log_text(rows: list[dict[str, float]]) -> str:
    """The log as CSV; a column that a step did not report is empty there."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or ["step"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
