"""The running mean, the budget's ledger, seeds, provenance, and files that are whole or absent."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apex import provenance, seeds
from apex.budget import Cost, Counted, Ledger, counter, measure_cost
from apex.conditioning import AffineShift
from apex.ema import Ema, ramp
from apex.errors import UserError, run_command
from apex.files import Kind, atomic_folder, replace_folder, write_atomic


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    return net


def values(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def moved(net: nn.Module, step: float) -> None:
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += step


# ---------------------------------------------------------------------------------------------------- running mean


def test_the_ramp_of_the_decay_is_the_published_one():
    """0, .495, .620; .845 at call 10, .976 at 100, towards 0.99 (method.md, point 6)."""
    decays = [0.0]
    for _ in range(100):
        decays.append(ramp(decays[-1], 0.99))
    assert [round(d, 3) for d in decays[:3]] == [0.0, 0.495, 0.620]
    assert round(decays[9], 3) == 0.845 and round(decays[99], 3) == 0.976  # the first call has decay 0


@given(st.floats(0, 0.9999), st.floats(0.01, 0.9999))
def test_the_ramp_rises_to_its_target_and_stays_there(previous: float, target: float):
    previous = min(previous, target)
    following = ramp(previous, target)
    assert previous <= following <= target + 1e-12
    assert abs(ramp(target, target) - target) < 1e-12


def test_the_mean_is_the_recursion_with_the_ramped_decay():
    net = network()
    ema, expected, decay = Ema(net.parameters(), 0.9), None, 0.0
    for step in range(6):
        ema.update()
        now = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        expected = now if expected is None else [decay * e + (1 - decay) * n for e, n in zip(expected, now, strict=True)]
        decay = ramp(decay, 0.9)
        for shadow, e in zip(ema.shadow, expected, strict=True):
            torch.testing.assert_close(shadow, e)
        moved(net, 0.1 * (step + 1))


def test_the_first_update_copies_what_is_trained():
    net = network()
    ema = Ema(net.parameters(), 0.99)
    moved(net, 1.0)
    ema.update()
    assert all(torch.equal(s, p) for s, p in zip(ema.shadow, [p for p in net.parameters() if p.requires_grad], strict=True))
    assert len(ema.shadow) == 3  # the frozen bias is not kept


def test_the_swap_is_exact_both_ways_and_survives_an_exception():
    net = network()
    ema = Ema(net.parameters(), 0.5)
    ema.update()
    mean = [s.clone() for s in ema.shadow]
    moved(net, 1.0)
    online, places = values(net), [p.data_ptr() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        inside = [p for p in net.parameters() if p.requires_grad]
        assert all(torch.equal(p, m) for p, m in zip(inside, mean, strict=True))
        raise RuntimeError("inside")
    assert all(torch.equal(a, b) for a, b in zip(values(net), online, strict=True))
    assert [p.data_ptr() for p in net.parameters()] == places  # the optimiser's tensors, not copies
    assert all(torch.equal(s, m) for s, m in zip(ema.shadow, mean, strict=True))


def test_decay_zero_is_the_network_and_decay_one_never_moves():
    net = network()
    none, frozen = Ema(net.parameters(), 0.0), Ema(net.parameters(), 1.0)
    first = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    moved(net, 1.0)
    online = values(net)
    for ema in (none, frozen):
        ema.update()
    with none.applied():
        assert all(torch.equal(a, b) for a, b in zip(values(net), online, strict=True))
    with frozen.applied():
        assert all(torch.equal(p, f) for p, f in zip([p for p in net.parameters() if p.requires_grad], first, strict=True))


def test_the_mean_continues_from_its_state():
    def run(stop: int | None) -> list[torch.Tensor]:
        net = network()
        ema = Ema(net.parameters(), 0.95)
        for step in range(8):
            if step == stop:
                state = {"decay": ema.decay, "shadow": [s.clone() for s in ema.state()["shadow"]]}
                ema = Ema(net.parameters(), 0.95)
                ema.restore(state)
            moved(net, 0.1 * step)
            ema.update()
        return ema.shadow

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(4), strict=True))


# ---------------------------------------------------------------------------------------------------------- budget


class Line(nn.Module):
    """Two linear layers as a velocity network: 2 (D H + H D) FLOPs forward for D elements."""

    def __init__(self, elements: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(elements, hidden, bias=False), nn.Linear(hidden, elements, bias=False)

    def forward(self, x, t, cond, r=None):
        return self.b(self.a(x.flatten(1))).reshape(x.shape)


def test_flops_of_two_linear_layers_are_those_counted_by_hand(make_condition):
    """Backward: both weights' gradients, and the gradient between the layers; the input needs none."""
    net = Line(12, 5)
    cost = measure_cost(net, (3, 2, 2), make_condition(1))
    assert cost.forward == 2 * (12 * 5 + 5 * 12) == 240
    assert cost.training == 240 + 240 + 2 * 5 * 12
    net.a.requires_grad_(False)
    frozen = measure_cost(net, (3, 2, 2), make_condition(1))
    assert (frozen.forward, frozen.training) == (240, 240 + 120)  # the second weight's gradient alone
    assert all(p.grad is None for p in net.parameters())


def test_measuring_keeps_the_gradients_that_there_were(make_condition):
    net = Line(12, 5)
    for p in net.parameters():
        p.grad = torch.full_like(p, 7.0)
    measure_cost(net, (3, 2, 2), make_condition(1))
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in net.parameters())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_costs_its_share(groups: int):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=False)
    x = torch.zeros(2, 4, 5, 5, requires_grad=True)
    forward = 2 * 2 * 5 * 5 * 8 * (4 // groups) * 9
    with counter() as counted:
        out = conv(x)
    assert counted.get_total_flops() == forward
    with counter() as counted:
        out.sum().backward()
    assert counted.get_total_flops() == 2 * forward
    with counter() as counted:
        conv(x.detach()).sum().backward()
    assert counted.get_total_flops() == 2 * forward  # forward, and the weight's gradient


def test_attention_on_the_cpu_is_counted():
    q, k, v = (torch.zeros(1, 2, n, 8, requires_grad=True) for n in (6, 10, 10))
    with counter() as counted:
        out = nn.functional.scaled_dot_product_attention(q, k, v)
    assert counted.get_total_flops() == 2 * 2 * 2 * 6 * 10 * 8
    with counter() as counted:
        out.sum().backward()
    assert counted.get_total_flops() >= 2 * 2 * 2 * 2 * 6 * 10 * 8


def test_the_ledger_equals_the_flops_that_are_really_spent(make_backbone, make_condition, family: str):
    """Cost per sample times samples is what torch counts over a batch, with gradient and without."""
    backbone, cond = make_backbone(family, "embedding"), make_condition(3)
    ledger = Ledger({"student": measure_cost(backbone, (4, 4, 4), cond)})
    student = Counted(backbone, "student", ledger)
    x, t = torch.randn(3, 4, 4, 4), torch.rand(3)
    with counter() as counted, torch.no_grad():
        student(x, t, cond, t)
    assert ledger.flops() == pytest.approx(counted.get_total_flops(), rel=1e-9)
    assert ledger.state() == {"passes": {"forward": {"student": 3}}, "costs": {"student": {"forward": ledger.costs["student"].forward}}}
    before = ledger.flops()
    with counter() as counted:
        student(x, t, AffineShift(-1.0)(cond), t).square().mean().backward()
    assert ledger.flops() - before == pytest.approx(counted.get_total_flops(), rel=1e-9)
    assert ledger.passes["training"] == {"student": 3}


def test_a_network_without_gradient_counts_as_forward(make_toy, make_condition):
    ledger = Ledger({"teacher": Cost(2.0, 6.0), "student": Cost(1.0, 3.0)})
    x, t, cond = torch.zeros(2, 1, 2, 2), torch.zeros(2), make_condition(2)
    teacher = Counted(make_toy(), "teacher", ledger, no_grad=True)
    student = Counted(make_toy(), "student", ledger)
    assert not teacher(x, t, cond).requires_grad
    assert student(x, t, cond).requires_grad
    with torch.no_grad():
        student(x, t, cond)
    assert ledger.flops() == 2 * 2.0 + 2 * 3.0 + 2 * 1.0
    other = Ledger({})
    other.restore(json.loads(json.dumps(ledger.state())))
    assert other.flops() == ledger.flops()
    assert ledger.flops_of() == {"teacher": 4.0, "student": 8.0}
    other.count("student", 1, "forward")
    assert ledger.flops() == 12.0  # a restored ledger is a copy


# ----------------------------------------------------------------------------------------------------------- seeds


def test_seeds_are_stable_from_machine_to_machine():
    """Recorded numbers: a change of these changes every run."""
    assert seeds.derive(0, "noise", 3) == 4299398423391567196
    assert seeds.derive(1, "image", 12, 2) == 8666671085488643040
    script = "from apex.seeds import derive; print(derive(0, 'noise', 3))"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout
    assert found == "4299398423391567196\n"


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["data", "noise", "probe"]), st.integers(0, 10**6)), unique=True, max_size=20)
)
def test_each_purpose_has_a_seed_of_its_own(purposes: list[tuple]):
    found = [seeds.derive(*p) for p in purposes]
    assert len(set(found)) == len(found)
    assert all(0 <= s < 2**63 for s in found)


def test_generators_repeat_and_are_uncorrelated():
    draws = [torch.randn(4000, generator=seeds.torch_generator(0, "noise", k)) for k in (0, 0, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    table = torch.corrcoef(torch.stack(draws[1:]))
    assert float((table - torch.eye(3)).abs().max()) < 0.06
    a, b = (seeds.numpy_generator(3, "x").random(4) for _ in range(2))
    assert np.array_equal(a, b) and not np.array_equal(a, seeds.numpy_generator(4, "x").random(4))


# ------------------------------------------------------------------------------------------------------ provenance


def git(where, *arguments: str) -> None:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *name, *arguments], cwd=where, check=True, capture_output=True)


def test_the_commit_says_when_files_differ_from_it(tmp_path):
    assert provenance.git_commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    head = provenance.git_commit(tmp_path)
    assert len(head) == 12 and set(head) <= set("0123456789abcdef")
    (tmp_path / "untracked").write_text("2")
    assert provenance.git_commit(tmp_path) == head
    (tmp_path / "a").write_text("3")
    assert provenance.git_commit(tmp_path) == f"{head}-dirty"


def test_a_digest_depends_on_values_and_not_on_their_order():
    assert provenance.digest({"a": 1, "b": [1, 2]}) == provenance.digest({"b": [1, 2], "a": 1})
    assert provenance.digest({"a": 1, "b": [1, 2]}) != provenance.digest({"a": 1, "b": [2, 1]})
    assert provenance.digest(0.1) != provenance.digest(0.1000001)


def test_versions_hardware_and_memory_are_named():
    found = provenance.versions()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert {"python", "diffusers", "peft", "accelerate", "numpy"} <= set(found)
    assert "core" in provenance.hardware("cpu")
    assert 50 < provenance.peak_memory_mb() < 100_000


def test_a_file_is_known_by_its_content(tmp_path):
    import hashlib

    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert provenance.file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()


# ------------------------------------------------------------------------------------------------- files and errors


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "state"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="state: cannot be written: found a full disk, expected room for it"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["state"]


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_atomic(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


ANY = Kind("a folder of this test", ("*",))


def test_a_folder_is_replaced_only_when_it_is_complete(tmp_path):
    out = tmp_path / "run"
    with atomic_folder(out, ANY) as folder:
        (folder / "weights").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(out, ANY) as folder:
        (folder / "weights").write_text("2")
        assert (out / "weights").read_text() == "1"
        raise RuntimeError("killed")
    assert (out / "weights").read_text() == "1"
    with atomic_folder(out, ANY) as folder:
        (folder / "other").write_text("3")
    assert [p.name for p in out.iterdir()] == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "new", tmp_path / "deep" / "place", ANY)
    assert (tmp_path / "deep" / "place").is_dir()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("p.yaml: train.lr: found x, expected y"), "error: p.yaml: train.lr: found x, expected y\n"),
        (
            OSError(28, "No space left on device", "out/state.pt"),
            "error: No space left on device (out/state.pt); nothing that existed was changed\n",
        ),
        (PermissionError(13, "Permission denied", "out"), "error: Permission denied (out); nothing that existed was changed\n"),
    ],
    ids=["user", "disk full", "not writable"],
)
def test_errors_that_a_user_can_mend_are_one_line(capsys, error: Exception, said: str):
    def main() -> None:
        raise error

    assert run_command(main) == 2
    assert capsys.readouterr().err == said
    assert run_command(lambda: None) == 0


def test_a_defect_of_the_code_keeps_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)
