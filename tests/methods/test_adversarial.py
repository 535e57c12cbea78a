"""add, ladd, dmd2, sana-sprint and the discriminator heads: values by hand, gradients in closed form, turns and times."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apex import losses, methods
from apex.conditioning import Condition
from apex.discriminators import DinoFeatures, Heads, pooled, spaced, tokens
from apex.errors import UserError
from apex.flow import endpoint, expand, guide, interpolate, score
from apex.testbed import Bed, Trial

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def mse(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def make(name: str, **params):
    return methods.get(name)(params)


# ------------------------------------------------------------------------------------------------------- the contest


def test_the_hinge_by_hand():
    """Tokens -2, 0.5, 3 of one head and 0 of another: the mean of a head first, then of the heads."""
    logits = [times(-2.0, 0.5, 3.0)[None], times(0.0)[None]]
    assert losses.called_real(logits).tolist() == pytest.approx([((3 + 0.5 + 0) / 3 + 1) / 2])
    assert losses.called_fake(logits).tolist() == pytest.approx([((0 + 1.5 + 4) / 3 + 1) / 2])
    assert losses.fooling(logits).tolist() == pytest.approx([(-1.5 / 3 + 0) / 2])


def test_softplus_is_the_cross_entropy_of_the_logits():
    d = 3 * normal(4, 5)
    bce = nn.functional.binary_cross_entropy_with_logits
    for found, label in ((losses.called_real, 1.0), (losses.called_fake, 0.0), (losses.fooling, 1.0)):
        torch.testing.assert_close(found([d], "softplus"), bce(d, torch.full_like(d, label), reduction="none").mean(1))


@given(real=st.floats(0.01, 10), fake=st.floats(0.01, 10))
def test_the_best_logit_tells_which_density_is_larger(real: float, fake: float):
    """Where real and fake have densities p and q: log(p / q) with softplus; with the hinge 1 or -1, whichever is likelier."""
    d = times(math.log(real / fake))[None].requires_grad_()
    cost = real * losses.called_real([d], "softplus") + fake * losses.called_fake([d], "softplus")
    assert abs(float(torch.autograd.grad(cost.sum(), d)[0])) < 1e-9 * (real + fake)
    grid = torch.linspace(-3, 3, 601, dtype=F64)[:, None]
    cost = real * losses.called_real([grid]) + fake * losses.called_fake([grid])
    assert float(cost.min()) == pytest.approx(float(cost[400 if real > fake else 200]), abs=1e-9)


@pytest.mark.parametrize("contest", ["hinge", "softplus"])
def test_the_students_pull_never_vanishes_where_it_is_found_out(contest: str):
    """-1 with the hinge, -sigmoid(-D) with softplus, which saturates only where the student has won."""
    d = times(-30.0, -1.0, 0.0, 1.0)[:, None].requires_grad_()
    pull = torch.autograd.grad(losses.fooling([d], contest).sum(), d)[0]
    torch.testing.assert_close(pull, -torch.ones_like(d) if contest == "hinge" else -torch.sigmoid(-d.detach()))


@pytest.mark.parametrize("contest", ["hinge", "softplus"])
@pytest.mark.parametrize("term", ["called_real", "called_fake", "fooling"])
def test_a_head_counts_the_same_whatever_its_number_of_tokens(contest: str, term: str):
    d, e = normal(3, 4), normal(3, 2, seed=1)
    found = getattr(losses, term)([d.repeat(1, 25), e], contest)
    torch.testing.assert_close(found, getattr(losses, term)([d, e], contest))
    single = torch.stack([getattr(losses, term)([one], contest) for one in (d, e)]).mean(0)
    torch.testing.assert_close(found, single)


def test_score_distillation_pulls_to_the_estimate_with_the_signals_share():
    sample, estimate, s = normal(3, 2, 2, 2).requires_grad_(), normal(3, 2, 2, 2, seed=1).requires_grad_(), times(0.0, 0.25, 1.0)
    found = losses.score_distillation(sample, estimate, s)
    torch.testing.assert_close(found.detach(), times(1.0, 0.75, 0.0) * mse(sample - estimate).detach())
    pull, none = torch.autograd.grad(found.sum(), [sample, estimate], allow_unused=True)
    torch.testing.assert_close(pull, 2 * expand(1 - s, sample) * (sample - estimate).detach() / 8)
    assert none is None


# ----------------------------------------------------------------------------------------------- distribution matching


@given(size=st.floats(-2, 2), seed=st.integers(0, 50))
def test_the_gradient_of_distribution_matching_is_the_force_over_the_elements(size: float, seed: int):
    """(f_fake - f_real) / mean |x - f_real|, whatever scale the latents have."""
    sample, fake, real = (10**size * normal(3, 2, 2, 2, seed=seed + k) for k in range(3))
    sample.requires_grad_()
    value, force = losses.distribution_matching(sample, fake, real)
    wanted = (fake - real) / expand((sample.detach() - real).abs().flatten(1).mean(1), fake)
    torch.testing.assert_close(force, wanted)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), sample)[0], wanted / 8)
    torch.testing.assert_close(value.detach(), 0.5 * mse(wanted))
    torch.testing.assert_close(losses.distribution_matching(10 * sample, 10 * fake, 10 * real)[1], force)


def test_equal_scores_match_and_no_gradient_enters_them():
    sample, fake, real = (normal(3, 2, 2, 2, seed=k).requires_grad_() for k in range(3))
    value, _ = losses.distribution_matching(sample, real, real)
    assert value.abs().max() == 0 and torch.autograd.grad(value.sum(), sample)[0].abs().max() == 0
    same = losses.distribution_matching(real.detach().requires_grad_(), fake, real)[0]  # nothing to divide by
    assert torch.isfinite(same).all()
    value, force = losses.distribution_matching(sample, fake, real)
    assert torch.autograd.grad(value.sum(), [fake, real], allow_unused=True) == (None, None) and not force.requires_grad


def test_the_force_is_the_difference_of_the_two_scores(make_exact, make_batch):
    """f = x_s - s F, so f_fake - f_real = s^2 / (1 - s) (score_fake - score_real): descent goes from fake to real."""
    batch, s = make_batch(5), times(0.1, 0.3, 0.5, 0.7, 0.9)
    fake, real = make_exact("t", spread=0.6, offset=0.3), make_exact("t")
    sample = normal(5, 2, 1, 1)
    x_s = interpolate(sample, normal(5, 2, 1, 1, seed=1), s)
    with torch.no_grad():
        v_fake, v_real = fake(x_s, s, batch.cond), real(x_s, s, batch.cond)
    f_fake, f_real = endpoint(v_fake, x_s, s), endpoint(v_real, x_s, s)
    scores = score(v_fake, x_s, s) - score(v_real, x_s, s)
    size = expand((sample - f_real).abs().flatten(1).mean(1), sample)
    _, force = losses.distribution_matching(sample, f_fake, f_real)
    torch.testing.assert_close(force, expand(s**2 / (1 - s), scores) * scores / size)
    mean, std = real.gaussian(batch.cond)  # the score of N((1 - s) mean, s^2 + (1 - s)^2 std^2)
    k = expand(s, x_s)
    torch.testing.assert_close(score(v_real, x_s, s), -(x_s - (1 - k) * mean) / (k**2 + (1 - k) ** 2 * std**2))


# -------------------------------------------------------------------------------------------------------------- heads


def test_the_pooled_caption_is_the_mean_of_the_tokens_that_count():
    embeds = normal(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=F64)
    found = pooled(Condition(embeds, mask))
    torch.testing.assert_close(found, torch.stack([embeds[0, :2].mean(0), embeds[1].mean(0), torch.zeros(2, dtype=F64)]))


@given(count=st.integers(1, 60), wanted=st.integers(1, 8))
def test_chosen_blocks_are_evenly_spaced_and_end_with_the_last(count: int, wanted: int):
    found = spaced(count, wanted)
    gaps = [b - a for a, b in zip([-1, *found], found, strict=False)]
    assert len(found) == min(count, wanted) and found[-1] == count - 1
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_tokens_are_the_places_of_a_map():
    maps = normal(2, 3, 4, 5)
    found = tokens(maps)
    assert found.shape == (2, 20, 3)
    assert torch.equal(found[1, 2 * 5 + 3], maps[1, :, 2, 3])


def heads(widths: list[int], seed: int = 0, **options) -> Heads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Heads(widths, 5, **options)


def test_the_order_of_tokens_does_not_matter_and_their_mean_does():
    judge, x = heads([4], normalise=False).double(), normal(2, 6, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(judge([x[:, order]])[0], judge([x])[0][:, order])
    moved = x.clone()
    moved[:, 0] += 1.0
    assert float((judge([moved])[0] - judge([x])[0]).detach()[:, 1:].abs().min()) > 1e-6


def test_with_normalisation_only_the_direction_of_a_token_counts():
    x = normal(2, 6, 16).float()
    judge, plain = heads([16]), heads([16], normalise=False)
    torch.testing.assert_close(judge([7 * x + 3])[0], judge([x])[0], rtol=1e-4, atol=1e-4)
    assert float((plain([7 * x + 3])[0] - plain([x])[0]).detach().abs().max()) > 0.1


def test_a_told_head_adds_the_projection_of_its_caption_and_another_ignores_it():
    told, untold = heads([4], caption=3, normalise=False).double(), heads([4], normalise=False).double()
    x, a, b = normal(2, 6, 4), normal(2, 3, seed=1), normal(2, 3, seed=2)
    middle = told([x], (a + b) / 2)[0]
    torch.testing.assert_close((told([x], a)[0] + told([x], b)[0]) / 2, middle)  # linear in the caption
    assert float((told([x], a)[0] - middle).detach().abs().max()) > 1e-3
    assert torch.equal(untold([x], a)[0], untold([x], b)[0])


def linear_head(slope: float) -> Heads:
    """A head of width 1 that is slope times its feature plus a constant: every activation stays on its linear side."""
    judge = Heads([1], 1, normalise=False).double()
    head = judge.heads[0]
    with torch.no_grad():
        for layer, weight, bias in ((head.inlet, 1.0, 100.0), (head.mean, 0.0, None), (head.middle, 0.0, 0.0), (head.outlet, slope, 0.0)):
            layer.weight.fill_(weight)
            if bias is not None:
                layer.bias.fill_(bias)
    return judge


@pytest.mark.parametrize("count", [1, 4, 9])
def test_r1_of_a_linear_head_by_hand(count: int):
    """The mean logit of N tokens has the gradient a / N at each: a^2 / N in all, whose derivative by a is 2 a / N."""
    judge, x = linear_head(3.0), normal(2, count, 1)
    logits, penalty = judge([x], penalty=True)
    torch.testing.assert_close(logits[0], 3 * (x[..., 0] + 100))
    torch.testing.assert_close(penalty, torch.full((2,), 9 / count, dtype=F64))
    slope = torch.autograd.grad(penalty.sum(), judge.heads[0].outlet.weight)[0]
    torch.testing.assert_close(float(slope), 2 * 2 * 3 / count)  # of both samples


def test_r1_is_the_squared_slope_of_the_mean_logit():
    judge, x, caption = heads([4, 3], caption=2, normalise=False).double(), [normal(2, 3, 4), normal(2, 5, 3, seed=1)], normal(2, 2, seed=2)
    logits, penalty = judge(x, caption, penalty=True)
    for with_penalty, without in zip(logits, judge(x, caption), strict=True):
        torch.testing.assert_close(with_penalty, without)
    squares = torch.zeros(2, dtype=F64)
    for k, f in enumerate(x):
        for place in range(f[0].numel()):
            step = torch.zeros(f[0].numel(), dtype=F64)
            step[place] = 1e-6
            moved = [[f + sign * step.reshape(f[0].shape) if i == k else g for i, g in enumerate(x)] for sign in (1, -1)]
            ends = [judge(each, caption)[k] for each in moved]
            squares += ((ends[0] - ends[1]).mean(1) / 2e-6).square().detach() / 2  # the mean over two heads
    torch.testing.assert_close(penalty.detach(), squares, rtol=1e-6, atol=1e-9)


def test_spectral_norm_bounds_every_layer_by_one_and_is_kept_in_buffers():
    judge = heads([4], caption=3, spectral=True, normalise=False).double()
    with torch.no_grad():
        for p in judge.parameters():
            p.mul_(5.0)
        for _ in range(200):  # one step of the power method a pass
            judge([normal(2, 6, 4)], normal(2, 3))
    head = judge.heads[0]
    for layer in (head.inlet, head.mean, head.middle, head.outlet):
        original = layer.parametrizations.weight.original.detach()
        torch.testing.assert_close(layer.weight.detach(), original / torch.linalg.matrix_norm(original, 2), rtol=1e-5, atol=1e-7)
    other = heads([4], seed=1, caption=3, spectral=True, normalise=False).double()
    other.load_state_dict(judge.state_dict())
    x, c = [normal(1, 2, 4)], normal(1, 3)
    assert torch.equal(judge(x, c)[0], other(x, c)[0])
    assert any("_u" in name for name, _ in judge.named_buffers())


# --------------------------------------------------------------------------------------------------- image features


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14))
    network.save_pretrained(folder)
    return folder


def test_image_features_are_those_of_the_named_layers_of_normalised_pixels(dino):
    features = DinoFeatures(dino, 28, layers=2)
    pixels = (torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    found = features(pixels)
    assert [f.shape for f in found] == [(2, 1 + 4, 16)] * 2  # a class token and 2 x 2 patches
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        hidden = features.network(((pixels + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states
    for f, k in zip(found, spaced(3, 2), strict=True):
        torch.testing.assert_close(f.detach(), hidden[k + 1], rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(sum(f.square().sum() for f in found), pixels)
    assert float(slope.abs().max()) > 1e-4
    assert not any(p.requires_grad for p in features.parameters()) and features.constant  # nothing to train or to save
    assert [f.shape for f in features(torch.zeros(1, 3, 8, 8))] == [(1, 5, 16)] * 2  # any size of image


def test_a_folder_without_such_a_network_is_one_clear_line(dino, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json; expected a folder of a DINOv2 network") as error:
        DinoFeatures(tmp_path, 28)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"feature_resolution: found 30, expected a multiple of the patch of .*, 14") as error:
        DinoFeatures(dino, 30)
    assert "\n" not in str(error.value)


def test_add_judges_the_features_of_a_local_network_where_one_is_named(dino):
    trial = Trial(make("add", features=str(dino), feature_resolution=28), Bed("sana"))
    assert isinstance(trial.extra["image_features"], DinoFeatures)
    trial.losses(0).losses["student"].backward()
    assert sum(float(p.grad.abs().sum()) for p in trial.roles["student"] if p.grad is not None) > 0


# ------------------------------------------------------------------------------------------------------ student times


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", ["add", "ladd", "dmd2"])
def test_the_student_is_trained_at_the_times_at_which_it_is_sampled(make_batch, name: str, share: float):
    from apex.methods._adversarial import draw_times

    p = make(name, times=[1.0, 0.8, 0.5, 0.2], one_step_share=share).params
    found = draw_times(p, make_batch(8000))
    shares = [float((found.double() - t).abs().lt(1e-6).double().mean()) for t in p.times]
    assert shares == pytest.approx([share, *[(1 - share) / 3] * 3], abs=0.02)
    assert sum(shares) == pytest.approx(1)


def test_with_one_time_the_share_does_not_matter(make_batch):
    from apex.methods._adversarial import draw_times

    assert torch.equal(
        draw_times(make("ladd", times=[0.7], one_step_share=0.0).params, make_batch(5)), torch.full((5,), 0.7, dtype=torch.float64)
    )


def test_the_paper_of_add_draws_four_times_alike(make_batch):
    p = make("add").params
    assert len(p.times) == 4 and p.one_step_share == 1 / len(p.times) and p.distillation == 2.5


# --------------------------------------------------------------------------------------------------------------- ladd


def clean(batch, student, t: float = 1.0) -> Tensor:
    """The student's clean estimate at the first noise that the batch drew."""
    at = torch.full((len(batch),), t, dtype=F64)
    x_t = interpolate(batch.x0, batch.noises[0], at)
    return endpoint(student(x_t, at, batch.cond), x_t, at)


def contest(real: list[Tensor], fake: list[Tensor], kind: str) -> Tensor:
    cost = torch.relu if kind == "hinge" else nn.functional.softplus
    one = 1 if kind == "hinge" else 0
    return sum(cost(one - r).mean() + cost(one + f).mean() for r, f in zip(real, fake, strict=True)) / len(real)


LADD = [{}, {"contest": "softplus"}, {"r1": 0.7}, {"mismatched": True}, {"noise_mean": -1.0, "noise_std": 0.5}]


@pytest.mark.parametrize("params", LADD, ids=str)
def test_ladd_by_hand(make_smooth, make_heads, make_batch, make_nets, gradients, params: dict):
    student, teacher, heads, batch = make_smooth(1), make_smooth(3), make_heads(), make_batch(6)
    method = make("ladd", times=[0.9], **params)
    method.blocks, p = [0, 1], method.params
    out = method.losses(batch, make_nets(student, teacher=teacher, heads=heads), 0)

    s = torch.sigmoid(p.noise_mean + p.noise_std * batch.normals[0])
    sample = clean(batch, student, 0.9)
    judge = lambda x, cond: heads(teacher(x, s, cond, None, blocks=[0, 1]))  # noqa: E731
    x_fake, x_real = interpolate(sample, batch.noises[1], s), interpolate(batch.x0, batch.noises[2], s)
    fake, real = judge(x_fake, batch.cond), judge(x_real, batch.cond)
    fooled = sum((-d if p.contest == "hinge" else nn.functional.softplus(-d)).mean() for d in fake) / 2
    torch.testing.assert_close(out.losses["student"], fooled)
    torch.testing.assert_close(gradients(out.losses["student"], student), gradients(fooled, student))
    assert float(gradients(fooled, student).norm()) > 1e-4

    shown = judge(x_fake.detach(), batch.cond)
    if p.mismatched:  # real latents under their neighbour's caption, half of all fakes
        wrong = judge(x_real, batch.cond[torch.tensor([5, 0, 1, 2, 3, 4])])
        shown = [torch.cat(pair) for pair in zip(shown, wrong, strict=True)]
    judged = contest(real, shown, p.contest)
    if p.r1:
        features = [f.detach().requires_grad_() for f in teacher(x_real, s, batch.cond, None, blocks=[0, 1])]
        slopes = torch.autograd.grad(sum(d.mean(1).sum() for d in heads(features)), features, create_graph=True)
        judged = judged + p.r1 * sum(g.square().sum((1, 2)).mean() for g in slopes) / 2
    torch.testing.assert_close(out.losses["discriminator"], judged)
    torch.testing.assert_close(gradients(out.losses["discriminator"], heads), gradients(judged, heads))


def test_one_sample_has_no_mismatched_caption(make_smooth, make_heads, make_batch, make_nets):
    """Its neighbour is itself: the real pair must not be called fake."""
    nets = make_nets(make_smooth(1), teacher=make_smooth(3), heads=make_heads())
    found = []
    for mismatched in (False, True):
        method = make("ladd", times=[0.9], mismatched=mismatched)
        method.blocks = [0, 1]
        found.append(method.losses(make_batch(1), nets, 0).losses["discriminator"])
    assert torch.equal(*found)


def test_heads_that_see_the_same_on_both_sides_cost_two_and_stay(make_exact, make_heads, make_batch, make_nets, gradients):
    """One picture a caption and a student that makes it, at one noise: hinge losses 1 - D and 1 + D, whose gradients cancel."""
    student, heads, noise = make_exact("zero", spread=0.0), make_heads(), normal(6, 2, 1, 1)
    batch = make_batch(6, spread=0.0, given_noises=[normal(6, 2, 1, 1, seed=1), noise, noise])
    method = make("ladd", times=[1.0, 0.5])
    method.blocks = [0, 1]
    loss = method.losses(batch, make_nets(student, heads=heads), 0).losses["discriminator"]
    assert float(loss.detach()) == pytest.approx(2.0, abs=1e-9)  # where no |D| exceeds 1
    assert float(gradients(loss, heads).norm()) < 1e-9


@pytest.mark.parametrize("name", ["ladd", "sana-sprint"])
def test_heads_with_spectral_norm_continue_from_their_state(name: str):
    """The power method's vectors are state too: restored in the middle, a run ends with the same numbers."""
    params = {"spectral": True, "r1": 0.1, "mismatched": True}
    whole = Trial(make(name, **params), Bed("sana"), total=4)
    for _ in range(2):
        whole.optimise()
    state = whole.state()
    again = Trial(make(name, **params), Bed("sana"), total=4)
    again.restore(state)
    for trial in (whole, again):
        for _ in range(2):
            trial.optimise()
    for key, value in whole.trained().items():
        assert torch.equal(value, again.trained()[key]), key


# ---------------------------------------------------------------------------------------------------------------- add


class Decode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2, 2).double()

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.up(latents))


class Encode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 1).double()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first = torch.tanh(self.down(pixels))
        return [first, 2 * first.mean((2, 3), keepdim=True)]


@pytest.mark.parametrize("codec", [False, True])
@pytest.mark.parametrize("params", [{}, {"r1": 0.0}, {"distillation": 0.0}, {"guidance": 1.0, "contest": "softplus"}], ids=str)
def test_add_by_hand(make_smooth, make_heads, make_batch, make_nets, gradients, params: dict, codec: bool):
    student, teacher, batch = make_smooth(1), make_smooth(3), make_batch(6)
    torch.manual_seed(0)
    extra = {"decoder": Decode().requires_grad_(False), "image_features": Encode().requires_grad_(False)} if codec else {}
    heads = make_heads(4 if codec else 2, 2 if codec else 1, caption=16)
    method = make("add", times=[1.0], **params)
    p = method.params
    out = method.losses(batch, make_nets(student, teacher=teacher, heads=heads, **extra), 0)

    sample = clean(batch, student)
    seen = lambda x: [tokens(f) for f in extra["image_features"](extra["decoder"](x))] if codec else [tokens(x)]  # noqa: E731
    caption = batch.cond.embeds[:, 0]  # captions of one token
    fake, real = heads(seen(sample), caption), heads(seen(batch.x0), caption)
    fooled = sum((-d if p.contest == "hinge" else nn.functional.softplus(-d)).mean() for d in fake) / len(fake)
    judged = contest(real, heads(seen(sample.detach()), caption), p.contest)
    if p.r1:
        judged = judged + p.r1 * heads(seen(batch.x0), caption, penalty=True)[1].mean()
    expected = fooled
    if p.distillation:
        with torch.no_grad():
            s = batch.uniforms[-1]
            x_s = interpolate(sample, batch.noises[1], s)
            v = guide(teacher(x_s, s, batch.cond), teacher(x_s, s, batch.null), p.guidance)
        expected = fooled + p.distillation * ((1 - s) * mse(sample - endpoint(v, x_s, s))).mean()
    torch.testing.assert_close(out.losses["student"], expected)
    torch.testing.assert_close(gradients(out.losses["student"], student), gradients(expected, student))
    torch.testing.assert_close(out.losses["discriminator"], judged)
    torch.testing.assert_close(gradients(out.losses["discriminator"], heads), gradients(judged, heads))
    assert float(gradients(fooled, student).norm()) > 1e-5  # through the frozen codec


def test_the_distillation_of_add_is_zero_where_the_teacher_knows_the_picture(make_exact, make_heads, make_batch, make_nets):
    """One picture a caption: the teacher's clean estimate of any noised picture is the picture."""
    student, teacher = make_exact("zero", spread=0.0), make_exact("t", spread=0.0)
    nets = make_nets(student, teacher=teacher, heads=make_heads(2, 1, caption=16))
    batch = make_batch(16, spread=0.0)
    batch.given = [torch.rand(16), torch.rand(16), torch.rand(16).clamp_min(0.01)]
    out = make("add", guidance=1.0).losses(batch, nets, 0)
    assert float(out.logs["distillation"]) < 1e-20
    torch.nn.init.constant_(student.shift, 0.1)
    assert float(make("add", guidance=1.0).losses(make_batch(16, spread=0.0), nets, 0).logs["distillation"]) > 1e-4


def test_add_judges_latents_where_there_is_no_codec_and_tells_heads_the_caption_everywhere():
    latents, images = (Trial(make("add"), Bed(family)).extra for family in ("gaussian", "sana"))
    assert set(latents) == {"heads"} and set(images) == {"heads", "decoder", "image_features"}
    assert latents["heads"].told and images["heads"].told
    assert not latents["heads"].normalise and images["heads"].normalise  # two channels have no direction left


# --------------------------------------------------------------------------------------------------------------- dmd2


def dmd2(student, fake, make_nets, batch, *, teacher=None, heads=None, step: int = 0, **params):
    method = make("dmd2", **{"times": [1.0], "fake_updates": 1, "gan_weight": 0.0, "guidance": 1.0} | params)
    method.blocks = [0, 1]
    extra = {"fake_score": fake} | ({"heads": heads} if heads is not None else {})
    nets = make_nets(student, teacher=teacher, **extra)
    return method.losses(batch, nets, step), nets


def test_dmd2_is_at_rest_where_the_fake_score_is_the_real_one(make_smooth, make_exact, make_batch, make_nets, gradients):
    """Whatever the student makes; this is where training starts without guidance, for the fake score starts as the teacher."""
    student = make_smooth(1)
    out, _ = dmd2(student, make_exact("t"), make_nets, make_batch(16))
    assert float(out.losses["student"].detach()) < 1e-20 and float(gradients(out.losses["student"], student).norm()) < 1e-12
    out, _ = dmd2(student, make_exact("t"), make_nets, make_batch(16), guidance=2.5)
    assert float(gradients(out.losses["student"], student).norm()) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("gan_weight", [0.0, 0.4])
def test_the_gradient_of_dmd2_is_the_difference_of_scores_and_the_heads_pull(
    make_smooth, make_heads, make_batch, make_nets, gradients, guidance: float, gan_weight: float
):
    student, fake, teacher, batch = make_smooth(1), make_smooth(2), make_smooth(3), make_batch(6)
    heads = make_heads()
    out, _ = dmd2(student, fake, make_nets, batch, teacher=teacher, heads=heads, guidance=guidance, gan_weight=gan_weight)
    sample = clean(batch, student)
    s = 0.02 + 0.96 * batch.uniforms[-1]
    x_s = interpolate(sample, batch.noises[-1], s)
    with torch.no_grad():
        v_fake = fake(x_s, s, batch.cond)
        v_real = guide(teacher(x_s, s, batch.cond), teacher(x_s, s, batch.null), guidance)
        gap = expand(s, x_s) * (v_real - v_fake)  # of the clean estimates
        force = gap / expand((sample - endpoint(v_real, x_s, s)).abs().flatten(1).mean(1), gap)
    expected = gradients(sample, student, force / force.numel())
    assert float(expected.norm()) > 1e-3
    if gan_weight:
        logits = heads(fake(x_s, s, batch.cond, None, blocks=[0, 1]))
        pull = gradients(sum(nn.functional.softplus(-d).mean() for d in logits) / 2, student)
        assert float(pull.norm()) > 1e-4
        expected = expected + gan_weight * pull
    torch.testing.assert_close(gradients(out.losses["student"], student), expected)


@pytest.mark.parametrize(("spread", "offset"), [(0.5, 0.0), (1.5, 0.0), (1.0, 0.4), (1.0, -0.4)])
def test_dmd2_moves_a_wrong_distribution_toward_the_data(make_exact, make_batch, make_nets, spread: float, offset: float):
    """A student that makes Gaussians of another spread or mean, with their exact score as the fake one."""
    student, fake = make_exact("zero", spread, offset), make_exact("t", spread, offset)
    out, _ = dmd2(student, fake, make_nets, make_batch(4000))
    slope, shift = torch.autograd.grad(out.losses["student"], [student.slope, student.shift])
    # The sample is z - F: less slope widens it, more shift lowers it.
    if spread != 1:
        assert torch.all((slope > 0) == (spread < 1)) and float(slope.abs().min()) > 0.01
    else:
        assert torch.all((shift < 0) == (offset > 0)) and float(shift.abs().min()) > 0.01


def test_the_fake_score_learns_the_students_samples_and_the_heads_beside_it(make_smooth, make_heads, make_batch, make_nets, gradients):
    """Flow matching on detached samples, and 0.01 of the softplus contest on the features of the same pass, of samples and data."""
    student, fake, heads, batch = make_smooth(1), make_smooth(2), make_heads(), make_batch(6)
    out, _ = dmd2(student, fake, make_nets, batch, heads=heads, gan_weight=0.1)
    with torch.no_grad():
        sample = clean(batch, student)
    s = 0.02 + 0.96 * batch.uniforms[-2]
    _, noise, other, _ = batch.noises
    x_s, x_real = interpolate(sample, noise, s), interpolate(batch.x0, other, s)
    on_fake, on_real = (heads(fake(x, s, batch.cond, None, blocks=[0, 1])) for x in (x_s, x_real))
    expected = mse(fake(x_s, s, batch.cond) - (noise - sample)).mean() + 0.01 * contest(on_real, on_fake, "softplus")
    torch.testing.assert_close(out.losses["fake_score"], expected)
    for module in (fake, heads):
        torch.testing.assert_close(gradients(out.losses["fake_score"], module), gradients(expected, module))
    assert not any(torch.autograd.grad(out.losses["fake_score"], list(student.parameters()), allow_unused=True, retain_graph=True))


def test_the_fake_score_moves_in_every_step_and_the_student_in_each_nth():
    """And the running mean follows the student's updates alone."""
    trial = Trial(make("dmd2", fake_updates=3), Bed("gaussian"), total=12, ema=0.9)
    assert trial.method.cycle() == 3
    moved: dict[str, list[int]] = {"student": [], "fake_score": [], "heads": [], "mean": []}
    for step in range(9):
        before = {k: v.detach().clone() for k, v in trial.trained().items()}
        mean = [s.clone() for s in trial.ema.shadow]
        out = trial.optimise()
        assert set(out.losses) == ({"student", "fake_score"} if step % 3 == 2 else {"fake_score"})
        for name in ("student", "fake_score", "heads"):
            if any(not torch.equal(v, before[k]) for k, v in trial.trained().items() if k.startswith(name)):
                moved[name].append(step)
        if any(not torch.equal(a, b) for a, b in zip(mean, trial.ema.shadow, strict=True)):
            moved["mean"].append(step)
    assert moved == {"student": [2, 5, 8], "fake_score": list(range(9)), "heads": list(range(9)), "mean": [3, 6]}


def test_passes_of_dmd2(make_smooth, make_batch, make_nets):
    """Between its turns the student is run without gradient and the teacher not at all."""
    nets = {}
    for step in range(3):
        batch = make_batch(8)
        _, nets[step] = dmd2(make_smooth(1), make_smooth(2), make_nets, batch, step=step, fake_updates=3, guidance=2.5)
    passes = [nets[step].student.ledger.passes for step in range(3)]
    assert passes[:2] == [{"forward": {"student": 8}}] * 2
    assert passes[2] == {"training": {"student": 8}, "forward": {"teacher": 16}}


def test_samples_are_shown_within_the_named_noise(make_batch):
    s = make("dmd2", min_noise=0.3, max_noise=0.4).noise_times(make_batch(4000))
    assert 0.3 <= float(s.min()) < 0.301 and 0.399 < float(s.max()) <= 0.4


def test_without_the_students_adversarial_term_there_are_no_heads():
    trial = Trial(make("dmd2", gan_weight=0.0, fake_updates=2), Bed("sana"))
    assert set(trial.extra) == {"fake_score"}
    assert [set(trial.optimise().losses) for _ in range(2)] == [{"fake_score"}, {"student", "fake_score"}]


def test_the_fake_score_starts_as_the_teacher():
    trial = Trial(make("dmd2"), Bed("sana"))
    batch = trial.batch(0)
    t = torch.full((len(batch),), 0.5)
    torch.testing.assert_close(trial.extra["fake_score"](batch.x0, t, batch.cond), trial.nets.teacher(batch.x0, t, batch.cond))
    assert all(p.requires_grad for p in trial.extra["fake_score"].parameters())


# -------------------------------------------------------------------------------------------------------- sana-sprint


def test_sana_sprint_without_its_adversarial_half_is_scm(make_smooth, make_heads, make_batch, make_nets, gradients):
    found = []
    for name, params in (("scm", {}), ("sana-sprint", {"adversarial": 0.0})):
        method, student = make(name, **params), make_smooth(1)
        method.blocks = [0, 1]
        loss = method.losses(make_batch(8), make_nets(student, heads=make_heads()), 0).losses["student"]
        found.append((loss.detach(), gradients(loss, student)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_sana_sprint_is_scm_and_its_share_of_ladd(make_smooth, make_heads, make_batch, make_nets, weight: float):
    """The heads judge estimates at the consistency term's kind of times, half of them at t = 1."""
    student, teacher, heads, batch = make_smooth(1), make_smooth(3), make_heads(), make_batch(8)
    method = make("sana-sprint", adversarial=weight)
    method.blocks = [0, 1]
    nets = make_nets(student, teacher=teacher, heads=heads)
    out = method.losses(batch, nets, 0)
    t = torch.where(batch.uniforms[0] < 0.5, 1.0, torch.sigmoid(0.89 + 1.6 * batch.normals[1]))
    assert torch.equal(nets.student.calls[-1][0], t) and 0 < int((t == 1).sum()) < 8
    with torch.no_grad():
        x_t = interpolate(batch.x0, batch.noises[1], t)
        sample = endpoint(student(x_t, t, batch.cond), x_t, t)
        s = torch.sigmoid(0.09 + batch.normals[2])
        judge = lambda x, noise: heads(teacher(interpolate(x, noise, s), s, batch.cond, None, blocks=[0, 1]))  # noqa: E731
        fake, real = judge(sample, batch.noises[2]), judge(batch.x0, batch.noises[3])
        torch.testing.assert_close(out.losses["discriminator"].detach(), contest(real, fake, "hinge"))
        fooled = sum(-d.mean() for d in fake) / 2
    torch.testing.assert_close(out.losses["student"].detach(), out.logs["consistency"] + weight * fooled)
    assert set(out.losses) == {"student", "discriminator"}  # both in every step


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_one_step_samples_of_sana_sprint(make_smooth, make_batch, make_nets, share: float):
    nets = make_nets(make_smooth(1))
    make("sana-sprint", one_step_share=share).sample(make_batch(4000), nets)
    assert abs(float((nets.student.calls[0][0] == 1).double().mean()) - share) < 0.03


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("ladd", {"times": []}, "rows.mine.params.times"),
        ("ladd", {"times": [0.5, 1.0]}, "sigmas must decrease within (0, 1], found [0.5, 1.0]"),
        ("add", {"times": [1.0, 0.0]}, "sigmas must decrease within (0, 1], found [1.0, 0.0]"),
        ("ladd", {"contest": "wgan"}, "rows.mine.params.contest: found 'wgan', expected 'hinge' or 'softplus'"),
        ("ladd", {"r1": -0.1}, "rows.mine.params.r1: found -0.1, expected greater than or equal to 0"),
        ("ladd", {"head_width": 0}, "rows.mine.params.head_width: found 0, expected greater than or equal to 1"),
        ("ladd", {"blocks": [0.5]}, "rows.mine.params.blocks"),
        ("add", {"lambda": 2.5}, "rows.mine.params.lambda: unknown key 'lambda'"),
        ("dmd2", {"min_noise": 0.9, "max_noise": 0.5}, "max_noise: found 0.5, expected more than min_noise, 0.9"),
        ("dmd2", {"fake_updates": 0}, "rows.mine.params.fake_updates: found 0, expected greater than or equal to 1"),
        ("dmd2", {"max_noise": 1.5}, "rows.mine.params.max_noise: found 1.5, expected less than or equal to 1"),
        ("sana-sprint", {"one_step_share": 2.0}, "rows.mine.params.one_step_share: found 2.0, expected less than or equal to 1"),
        ("sana-sprint", {"adversarial": -1.0}, "rows.mine.params.adversarial: found -1.0, expected greater than or equal to 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_line(refusal, name: str, params: dict, said: str):
    assert said in refusal(name, params)


@pytest.mark.parametrize("name", ["pcm", "ladd", "dmd2", "sana-sprint"])
def test_a_block_that_the_network_does_not_have_is_one_clear_line(name: str):
    with pytest.raises(UserError, match=r"params\.blocks: found \[0, 9\], expected different numbers from 0 to 1, the network's blocks"):
        Trial(make(name, blocks=[0, 9]), Bed("sana"))
