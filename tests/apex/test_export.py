"""What a run leaves behind opens in stock diffusers and gives the images of our own sampler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from apex import card, flow
from apex.card import FOLDED, GUIDED, LORA_FILE
from apex.conditioning import Condition
from apex.errors import UserError
from apex.export import export_run
from apex.export import stock as says
from apex.generator import Generator
from apex.pipeline import load_backbone

QUICK = {"train": {"learning_rate": 1e-2, "ema": 0.9}, "sampling": {"sigmas": {2: [1.0, 0.6]}}}


@pytest.fixture
def exported(make_loop, tiny_pipeline, qwen_pipeline, tmp_path):
    """exported("apex", "sana", tuning="full"): a loop after three steps, and the folder that it left."""

    def make(method: str, family: str, tuning: str = "full", **more):
        pipeline = {"sana": tiny_pipeline, "qwen_image": qwen_pipeline}[family]
        loop = make_loop(method, tuning=tuning, pipeline=str(pipeline), **(QUICK | more))
        loop.fit(3)
        loop.export(tmp_path / "run")
        return loop, tmp_path / "run"

    return make


def draw(loop, count: int = 2) -> tuple[Tensor, list[Tensor], Condition]:
    generator = torch.Generator().manual_seed(3)
    shape = (count, *loop.latents.shape[1:])
    cond = loop.captions[torch.arange(count)]
    return torch.randn(shape, generator=generator), [torch.randn(shape, generator=generator) for _ in range(3)], cond


def ours(loop, noise: Tensor, fresh: list[Tensor], cond: Condition, sigmas: list[float], mode: str) -> Tensor:
    """The sampler on the trained student itself, under its running mean."""
    with torch.no_grad(), loop.ema.applied():
        return flow.sample(lambda x, t, r: loop.student(x, t, cond, r), noise, sigmas, mode=mode, fresh=fresh)


def by_diffusers(transformer, stock, noise, fresh, cond, sigmas, mode, monkeypatch, sees_r: bool) -> Tensor:
    """diffusers' transformer and scheduler alone; `fresh` stands in for what the scheduler draws."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, stochastic_sampling=mode == "few")
    scheduler.set_timesteps(sigmas=sigmas)
    source = iter(fresh)
    monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor", lambda *_, **__: next(source, noise))
    x, ends = noise, [*scheduler.timesteps[1:].tolist(), 0.0]
    for time, following in zip(scheduler.timesteps, ends, strict=True):
        t = torch.full((len(x),), float(time) / 1000)
        r = {"few": 0.0, "any": following, "multi": float(time)}[mode]
        more = {"guidance": torch.full((len(x),), float(time) - r)} if sees_r else {}
        with torch.no_grad():
            x = scheduler.step(stock(transformer, x, t, cond, **more), time, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize(("method", "mode"), [("apex", "few"), ("apex", "any"), ("apex-eq25", "few"), ("fm", "multi")])
def test_stock_diffusers_gives_the_image_of_our_sampler(exported, stock, monkeypatch, method: str, mode: str, nfe: int):
    """SanaTransformer2DModel.from_pretrained and the Euler scheduler with the export's sigmas; t - r in the guidance slot."""
    loop, run = exported(method, "sana", sampling={"mode": mode})
    recipe = json.loads((run / "sampling.json").read_text())
    assert recipe["mode"] == mode
    sigmas = recipe["sigmas"][str(nfe)]
    noise, fresh, cond = draw(loop)
    expected = ours(loop, noise, fresh, cond, sigmas, mode)

    transformer = SanaTransformer2DModel.from_pretrained(run / "transformer").eval()
    sees_r = recipe["target_time"] == "embedding"
    found = by_diffusers(transformer, stock, noise, fresh, cond, sigmas, mode, monkeypatch, sees_r)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    generator = Generator.load(run, nfe=nfe)
    torch.testing.assert_close(generator.denoise(cond, noise, fresh), expected, rtol=1e-5, atol=1e-6)

    vae = AutoencoderKL.from_pretrained(loop.profile.pipeline_path / "vae").eval()
    with torch.no_grad():
        decoded = vae.decode(found / vae.config.scaling_factor).sample
    image = torch.as_tensor(VaeImageProcessor().postprocess(decoded, "np") * 255).round().int()
    assert int((generator.decode(expected).int() - image).abs().max()) <= 1


@pytest.mark.parametrize("family", ["sana", "qwen_image"])
@pytest.mark.parametrize("method", ["apex", "fm"])
def test_a_run_opens_as_the_network_that_was_trained(exported, family: str, method: str):
    loop, run = exported(method, family)
    assert (run / "target_time_embedder.safetensors").exists() == (family == "qwen_image" and method == "apex")
    loaded = load_backbone(run / "transformer").load_extra(run)
    assert loaded.target_time == loop.student.target_time == ("embedding" if method == "apex" else "none")
    noise, _, cond = draw(loop)
    for t, r in ((1.0, 0.0), (0.6, 0.2), (0.5, 0.5)):
        time, target = torch.full((2,), t), torch.full((2,), r)
        with torch.no_grad(), loop.ema.applied():
            expected = loop.student(noise, time, cond, target)
        with torch.no_grad():
            assert torch.equal(loaded(noise, time, cond, target), expected)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_weights_are_safetensors_and_nothing_is_pickled(exported, tuning: str):
    _, run = exported("apex", "sana", tuning)
    files = [p for p in run.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".csv", ".md", ".safetensors"}
    for path in (p for p in files if p.suffix == ".safetensors"):
        with safe_open(path, "pt") as weights:
            assert len(list(weights.keys())) > 10
    if tuning == "lora":
        assert [p.name for p in (run / "lora").iterdir()] == [LORA_FILE]
        assert not (run / "transformer").exists()


def test_the_recipe_says_what_stock_loading_reproduces_and_on_which_grid(make_backbone, family: str):
    grids = {"1": [0.999], "2": [0.999, 0.7]}
    for tuning, place in (("full", "transformer"), ("lora", "lora")):
        assert says(make_backbone(family), tuning, grids) == {"stock": {place: [1, 2]}, "stock_sigmas": {}}
    found = says(make_backbone(family, "embedding"), "full", grids)
    assert found["stock"] == ({GUIDED: [1, 2]} if family == "sana" else {}) | {FOLDED: [1]}
    assert found["stock_sigmas"] == {FOLDED: {"1": [0.999]}}


def test_a_fold_for_another_grid_is_no_place_that_reproduces(make_backbone):
    """As in runs from before, which were folded at t = 1 and did not say so; their LoRA was called a transformer."""
    grids = {"1": [0.999], "2": [0.999, 0.7]}
    recipe = {"tuning": "full", "sigmas": grids} | says(make_backbone("sana", "embedding"), "full", grids)
    assert card.stock_places(recipe) == {GUIDED: [1, 2], FOLDED: [1]}
    assert "`one_step/transformer` is exact for `sigmas=[0.999]` alone" in card.stock_words(recipe)
    del recipe["stock_sigmas"]
    assert card.stock_places(recipe) == {GUIDED: [1, 2]}
    said = "`one_step/transformer` is exact for `sigmas=[1.0]`, but this run samples NFE 1 at `sigmas=[0.999]`"
    assert said in card.stock_words(recipe)
    alone = recipe | {"stock": {FOLDED: [1]}}
    assert card.stock_places(alone) == {} and card.stock_words(alone) == f"No NFE without this suite. {said}."
    recipe["sigmas"] = {"1": [1.0], "2": [1.0, 0.6]}
    assert card.stock_places(recipe) == {GUIDED: [1, 2], FOLDED: [1]}
    assert card.stock_places({"tuning": "lora", "sigmas": grids, "stock": {"transformer": [1, 2]}}) == {"lora": [1, 2]}


@pytest.mark.parametrize("mode", ["few", "any", "multi"])
@pytest.mark.parametrize("sigmas", [[1.0], [0.999], [0.999, 0.7], [1.0, 0.85, 0.6, 0.3]], ids=str)
def test_the_gaps_are_those_that_the_sampler_takes(sigmas: list[float], mode: str):
    taken = []

    def network(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        taken.append(float((t - r)[0]))
        return x

    flow.sample(network, torch.zeros(1, 1, 1, 1), sigmas, mode=mode, fresh=[torch.zeros(1, 1, 1, 1)] * 3)
    assert card.gaps(sigmas, mode) == pytest.approx(taken, abs=1e-6)


def test_a_recipe_without_a_grid_of_one_step_is_folded_for_equal_steps(exported, tmp_path):
    """And its sampling.json has that grid, by which it is sampled."""
    _, run = exported("apex", "sana")
    recipe, made = (json.loads((run / name).read_text()) for name in ("sampling.json", "made.json"))
    recipe["sigmas"] = {"2": [0.9, 0.5]}
    for key in ("stock", "stock_sigmas"):
        del recipe[key]
    (tmp_path / "again").mkdir()
    export_run(tmp_path / "again", load_backbone(run / "transformer"), tuning="full", recipe=recipe, made=made)
    said = json.loads((tmp_path / "again" / "sampling.json").read_text())
    assert said["sigmas"] == {"1": [1.0], "2": [0.9, 0.5]} and said["stock_sigmas"] == {FOLDED: {"1": [1.0]}}
    for folder in (run, tmp_path / "again"):
        assert Generator.load(folder, nfe=1).sigmas == [1.0]
    one, other = (load_file(folder / FOLDED / "diffusion_pytorch_model.safetensors") for folder in (run, tmp_path / "again"))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_an_export_replaces_an_earlier_one_whole(exported, tmp_path):
    _, run = exported("fm", "sana")
    (run / "lora").mkdir()
    (run / "lora" / LORA_FILE).write_bytes(b"of an earlier tuning")
    _, run = exported("fm", "sana")
    assert sorted(p.name for p in run.iterdir()) == ["README.md", "log.csv", "made.json", "sampling.json", "transformer"]


def test_an_nfe_without_a_time_grid_has_equal_steps(exported):
    _, run = exported("fm", "sana")
    assert Generator.load(run, nfe=5).sigmas == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert Generator.load(run, nfe=2).sigmas == [1.0, 0.6]


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_run_is_refused_in_one_clear_line(exported, tmp_path):
    _, run = exported("fm", "sana")
    (run / "made.json").rename(run / "kept")
    with pytest.raises(UserError, match=r"made\.json: not found"):
        Generator.load(run, nfe=1)
    (run / "kept").rename(run / "made.json")
    text = (run / "sampling.json").read_text()
    (run / "sampling.json").write_text(text[:40])
    with pytest.raises(UserError, match=r"sampling\.json: not JSON"):
        Generator.load(run, nfe=1)
    (run / "sampling.json").write_text(text)
    weights = run / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        Generator.load(run, nfe=1)
    with pytest.raises(UserError, match="has no folder vae/; expected a pipeline in diffusers' layout"):
        Generator.load(tmp_path, nfe=1)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("what", ["lora", "extra"])
def test_a_damaged_adapter_or_extra_file_is_one_clear_line(exported, what: str):
    _, run = exported("apex", "qwen_image", "lora" if what == "lora" else "full")
    damaged(run / "lora" / LORA_FILE if what == "lora" else run / "target_time_embedder.safetensors")
    with pytest.raises(UserError):
        Generator.load(run, nfe=1)
