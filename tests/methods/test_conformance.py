"""Every method that is found keeps the contract; and the conformance checks see each kind of breach and name the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apex import conformance, methods
from apex.contract import CHECKS, check, find
from apex.errors import UserError, run_command

# Settings that take away or add networks: the contract holds for them too.
OTHER_SETTINGS = {
    "pcm": {"adversarial": 0.0},
    "dmd2": {"gan_weight": 0.0},
    "ladd": {"mismatched": True, "r1": 0.1, "spectral": True},
    "add": {"distillation": 0.0, "r1": 0.0},
    "lcm": {"guidance_max": 4.0},
    "sana-sprint": {"mismatched": True, "derivative": "finite_difference"},
    "ctm": {"solver_steps": 3},
    "meanflow": {"equal_share": 0.0, "velocity": "data"},
    "rcgm": {"order": 2, "interval": 0.05},
}


@pytest.mark.parametrize("name", ["step", "routing", "determinism", "micro-batches"])
@pytest.mark.parametrize("method", OTHER_SETTINGS)
def test_other_settings_keep_it_too(method, name):
    subject = find(method)
    subject.params = OTHER_SETTINGS[method]
    assert check(subject, name)


# A sound method in a few lines: LCM's fixed point at the teacher's own trajectory. Each breach below changes one line of it.
SOUND = '''\
"""A method for the tests."""

from pydantic import Field

from apex import flow, losses
from apex.methods.base import Method, Params, Step


class Settings(Params):
    weight: float = Field(1.0, gt=0, description="of the loss")


class Trial(Method):
    name = "trial"
    family = "regression"
    citation = "nowhere"
    needs = frozenset({"teacher"})
    Params = Settings

    def losses(self, batch, nets, step):
        noise, one = batch.normal_like(batch.x0), batch.x0.new_ones(len(batch.x0))
        x, sigmas = noise, flow.uniform_sigmas(8)
        for t, r in zip(sigmas, sigmas[1:]):
            x = x - (t - r) * nets.teacher(x, t * one, batch.cond)
        value = nets.student(noise, one, batch.cond, 0 * one)
        loss = self.params.weight * losses.mean_square(noise - value - x).mean()
        return Step({"student": loss}, {"loss": loss.detach()})


METHOD = Trial
'''


@pytest.mark.parametrize("name", sorted(CHECKS))
@pytest.mark.parametrize("method", methods.available())
def test_method_keeps_the_contract(method, name):
    assert check(find(method), name)


@pytest.fixture
def written(tmp_path):
    """A file trial.py with changes to the sound method: old text, new text, ..."""

    def write(*changes: str) -> Path:
        text = SOUND
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "trial.py"
        path.write_text(text)
        return path

    yield write
    for module in [key for key in sys.modules if key.startswith("apex_method_") or "trial" in key]:
        del sys.modules[module]


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_sound_method_outside_the_package_passes(written, name):
    assert check(find(str(written())), name)


CRITIC = """\
    def extra_networks(self, setup=None):
        return {"critic": __import__("torch").nn.Linear(1, 1)}

    def roles(self):
        return {"critic": "critic"}

"""

BREACHES = {
    "no citation": ("found", ('    citation = "nowhere"\n', ""), "citation"),
    "no METHOD": ("found", ("METHOD = Trial", ""), "METHOD"),
    "another name": ("found", ('name = "trial"', 'name = "other"'), "'trial'"),
    "an import that fails": ("found", ("from pydantic", "from pydantik"), "pydantik"),
    "a syntax error": ("found", ("Step({", "Step{"), ".py:27: cannot be imported (SyntaxError"),
    "unknown need": ("declared", ('{"teacher"}', '{"critic"}'), "needs"),
    "a setting of any type": ("params", ("weight: float", "weight: object"), "params.weight"),
    "a setting without words": ("params", ('description="of the loss"', ""), "params.weight"),
    "a default out of range": ("params", ("Field(1.0", "Field(-1.0"), "params.weight"),
    "a tensor returned": ("step", ('return Step({"student": loss}, {"loss": loss.detach()})', "return loss"), "Tensor"),
    "a loss per sample": ("step", ("- x).mean()", "- x)"), "(4,)"),
    "a loss of no one": ("step", ('{"student": loss}', '{"critic": loss}'), "critic"),
    "a loss without gradient": ("step", ('{"student": loss}', '{"student": loss.detach()}'), "no gradient"),
    "a log with gradient": ("step", ("loss.detach()}", "loss}"), "loss"),
    "NaN": ("step", ("self.params.weight *", "float('nan') *"), "nan"),
    "a shape that does not fit": ("step", ("noise - value - x", "noise - value - x[:, :1, :2]"), "trial.py:"),
    "the teacher trained": ("step", ("nets.student(noise", "nets.teacher(noise"), "no gradient"),
    "a gradient into another's network": (
        "routing",
        ("    def losses", CRITIC + "    def losses", "self.params.weight *", "nets.extra['critic'].weight.mean() *"),
        "critic.weight",
    ),
    "global random numbers": ("determinism", ("batch.normal_like(batch.x0)", "__import__('torch').randn_like(batch.x0)"), "batch.normal"),
    "one batch for all steps": ("determinism", ("noise - value - x", "nets.student(0 * noise, one, batch.null, 0 * one)"), "same loss"),
    "state outside the networks": (
        "resume",
        (
            "        noise, one",
            "        self.calls = getattr(self, 'calls', 0) + 1\n        noise, one",
            "self.params.weight",
            "self.calls",
        ),
        "restored at step",
    ),
    "the wrong sign": ("gaussian", ("noise - value - x", "noise + value - x"), "does not come closer"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_seen_in_one_line_that_names_the_file(written, breach):
    name, changes, words = BREACHES[breach]
    path = written(*changes)
    with pytest.raises(UserError) as caught:
        subject = find(str(path))
        assert name != "found", "it should not have been found"
        check(subject, name)
    text = str(caught.value)
    assert str(path) in text and words in text and "\n" not in text


@pytest.fixture
def command(monkeypatch):
    """command(*arguments): exit code of `python -m apex.conformance`."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["apex.conformance", *arguments])
        return run_command(conformance.main)

    return call


def test_the_command_goes_on_after_a_broken_method_and_fails_in_the_end(written, command, capsys):
    path = written("Step({", "Step{")
    assert command(str(path), "fm", "--checks", "declared,params") == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("FAIL") and str(path) in said[0]
    assert [one.split()[:3] for one in said[1:]] == [["ok", "fm", "declared"], ["ok", "fm", "params"]]


def test_an_unknown_check_is_refused(command, capsys):
    assert command("fm", "--checks", "speed") == 2
    assert capsys.readouterr().err.startswith("error: --checks: unknown speed; known: declared")
