"""The two families through the same tests: conventions, the target time r, folding, word order, LoRA, precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import QwenImageTransformer2DModel, SanaTransformer2DModel
from peft import LoraConfig
from torch import Tensor

from apex.backbones.qwen_image import pack, unpack
from apex.backbones.sana import SanaBackbone
from apex.conditioning import AffineShift, Condition
from apex.errors import UserError
from apex.pipeline import BACKBONES, load_backbone
from apex.pretrain.t5 import build_encoder, build_tokenizer


def inputs(count: int = 3, side: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, side, side, generator=generator), torch.rand(count, generator=generator)


@pytest.mark.parametrize("target_time", ["none", "embedding"])
@pytest.mark.parametrize("count", [1, 3])
def test_shapes_and_independence_of_the_batch(make_backbone, make_condition, family: str, target_time: str, count: int):
    x, t = inputs(3)
    backbone, cond = make_backbone(family, target_time), make_condition(3)
    with torch.no_grad():
        whole = backbone(x, t, cond, 0.3 * t)
        part = backbone(x[:count], t[:count], cond[:count], 0.3 * t[:count])
    assert part.shape == (count, 4, 4, 4)
    torch.testing.assert_close(part, whole[:count], rtol=1e-4, atol=1e-5)


def test_the_time_convention_is_that_of_the_stock_pipelines(make_backbone, make_condition, family: str, stock):
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    module = backbone.transformer.time_embed.emb if family == "sana" else backbone.transformer.time_text_embed
    seen = []
    hook = module.time_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    with torch.no_grad():
        torch.testing.assert_close(backbone.velocity(x, t, cond), stock(backbone.transformer, x, t, cond))
        backbone.velocity(x, torch.ones(3), cond)
        backbone.velocity(x, torch.zeros(3), cond)
    hook.remove()
    top = 1000.0 if family == "sana" else 1.0  # Qwen's time_proj has scale 1000
    assert seen[2].tolist() == [top] * 3 and seen[3].tolist() == [0.0] * 3
    assert family == "sana" or module.time_proj.scale == 1000


def test_sana_keeps_its_time_scale(make_backbone, make_condition):
    """Sana-Sprint's configuration counts time in [0, 1]: timestep_scale 0.001."""
    backbone = make_backbone("sana")
    backbone.transformer.register_to_config(timestep_scale=0.001)
    seen = []
    backbone.transformer.time_embed.emb.time_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    x, t = inputs()
    backbone.velocity(x, t, make_condition(3))
    torch.testing.assert_close(seen[0], t)


def test_a_scaled_time_is_the_same_network_at_the_scaled_time(make_backbone, make_condition, tmp_path):
    """What makes F smooth in t is stock configuration: the weights are the same, and what is saved is loaded so."""
    plain, cond, (x, t) = make_backbone("sana"), make_condition(3), inputs()
    scaled = load_saved(plain, tmp_path / "plain").with_time_scale(0.01)
    assert scaled.with_time_scale(0.1).transformer.config.timestep_scale == pytest.approx(1e-3)
    assert plain.transformer.config.timestep_scale == 1.0
    with torch.no_grad():
        torch.testing.assert_close(scaled.velocity(x, t, cond), plain.velocity(x, 1e-3 * t, cond))
        assert not torch.allclose(scaled.velocity(x, t, cond), plain.velocity(x, t, cond), atol=1e-4)
        torch.testing.assert_close(load_saved(scaled, tmp_path / "scaled").velocity(x, t, cond), scaled.velocity(x, t, cond))
        torch.testing.assert_close(scaled.with_target_time().velocity(x, t, cond, 0.5 * t), scaled.velocity(x, t, cond))


def load_saved(backbone, folder):
    backbone.transformer.save_pretrained(folder, safe_serialization=True)
    return load_backbone(folder)


def test_a_family_whose_time_scale_is_code_refuses_another(make_backbone):
    backbone = make_backbone("qwen_image")
    assert backbone.with_time_scale(1.0) is backbone
    with pytest.raises(UserError, match=r"time_scale: found 0.001, expected 1: qwen_image has its scale in code"):
        backbone.with_time_scale(0.001)


def test_every_input_matters(make_backbone, make_condition, family: str):
    x, t = inputs()
    backbone, cond = make_backbone(family, "embedding"), make_condition(3)
    with torch.no_grad():
        base = backbone.velocity(x, t, cond, 0.5 * t)
        changes = [
            backbone.velocity(x + 0.1, t, cond, 0.5 * t),
            backbone.velocity(x, 0.9 * t, cond, 0.5 * t),
            backbone.velocity(x, t, make_condition(3, seed=8), 0.5 * t),
            backbone.velocity(x, t, cond, 0.2 * t),
        ]
    assert all(float((c - base).abs().max()) > 1e-4 for c in changes)


def test_image_positions_matter(make_backbone, make_condition, family: str):
    """Moving the image's tokens about does more than moving the output about."""
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        turned = backbone.velocity(x.roll(2, -1), t, cond).roll(-2, -1)
        assert float((turned - backbone.velocity(x, t, cond)).abs().max()) > 1e-3


def test_pack_and_unpack_are_inverse_and_keep_patches_together():
    x = torch.arange(2 * 4 * 4 * 6).float().reshape(2, 4, 4, 6)
    tokens = pack(x)
    assert tokens.shape == (2, 6, 16)
    assert torch.equal(unpack(tokens, 4, 6), x)
    assert torch.equal(tokens[0, 0].reshape(4, 2, 2), x[0, :, :2, :2])
    assert torch.equal(tokens[0, 4].reshape(4, 2, 2), x[0, :, 2:, 2:4])  # row 1, column 1 of 2 x 3 patches


# ------------------------------------------------------------------------------------------------- the target time r


def test_training_starts_exactly_at_the_pretrained_network_for_every_r(make_backbone, make_condition, family: str):
    x, t = inputs()
    cond, plain = make_condition(3), make_backbone(family)
    student = plain.with_target_time()
    assert (plain.target_time, student.target_time) == ("none", "embedding")
    with torch.no_grad():
        expected = plain.velocity(x, t, cond)
        for r in (None, t, 0.4 * t, torch.zeros_like(t)):
            assert torch.equal(student.velocity(x, t, cond, r), expected)


def test_r_absent_means_r_equal_to_t(make_backbone, make_condition, family: str):
    x, t = inputs()
    student, cond = make_backbone(family, "embedding"), make_condition(3)
    with torch.no_grad():
        assert torch.equal(student.velocity(x, t, cond), student.velocity(x, t, cond, t))
        assert not torch.equal(student.velocity(x, t, cond), student.velocity(x, t, cond, 0 * t))


def test_a_network_without_target_time_does_not_see_r(make_backbone, make_condition, family: str):
    x, t = inputs()
    plain, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        assert torch.equal(plain.velocity(x, t, cond, 0 * t), plain.velocity(x, t, cond))


def test_only_the_difference_of_t_and_r_enters_the_second_embedding(make_backbone, make_condition, family: str):
    student = make_backbone(family, "embedding")
    embedder = student.transformer.time_embed.guidance_embedder if family == "sana" else student.target_embedder
    seen = []
    embedder.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    x, _ = inputs(2)
    cond = make_condition(2)
    student.velocity(x, torch.tensor([0.9, 0.5]), cond, torch.tensor([0.65, 0.25]))
    torch.testing.assert_close(seen[0][0], seen[0][1], atol=2e-4, rtol=0)
    assert float((seen[0][0] - make_features(0.25)).abs().max()) < 2e-4


def make_features(delta: float) -> Tensor:
    """The stock sinusoids of a time in [0, 1]: cosines, then sines, of 1000 delta."""
    angles = 1000 * delta * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()])


def test_with_target_time_twice_changes_nothing_and_the_source_is_left_alone(make_backbone, make_condition, family: str):
    plain = make_backbone(family)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    student = plain.with_target_time()
    assert student.with_target_time() is student
    with torch.no_grad():
        for p in student.parameters():
            p += 1
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize("first", [1.0, 0.999, 0.5])
def test_one_step_folds_into_a_plain_stock_transformer(make_backbone, make_condition, family: str, stock, first: float):
    x, _ = inputs()
    student, cond, one = make_backbone(family, "embedding"), make_condition(3), torch.full((3,), first)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    folded = student.fold_one_step(first)
    assert type(folded) in (SanaTransformer2DModel, QwenImageTransformer2DModel)
    assert not folded.config.get("guidance_embeds")
    with torch.no_grad():
        ours = student.velocity(x, one, cond, torch.zeros(3))
        torch.testing.assert_close(stock(folded, x, one, cond), ours, rtol=1e-5, atol=1e-6)
        assert float((stock(folded, x, one, cond) - student.velocity(x, one, cond, one)).abs().max()) > 1e-3
        half = 0.5 * one
        assert float((stock(folded, x, half, cond) - student.velocity(x, half, cond, 0 * half)).abs().max()) > 1e-4  # NFE 1 alone
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_folding_a_network_without_r_is_that_network(make_backbone, make_condition, family: str, stock):
    x, t = inputs()
    plain, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        assert torch.equal(stock(plain.fold_one_step(1.0), x, t, cond), plain.velocity(x, t, cond))


def test_sana_carries_r_in_the_stock_guidance_slot(make_backbone, make_condition, stock):
    x, t = inputs()
    student, cond = make_backbone("sana", "embedding"), make_condition(3)
    with torch.no_grad():
        for r in (0 * t, 0.4 * t, t):
            assert torch.equal(stock(student.transformer, x, t, cond, guidance=1000 * (t - r)), student.velocity(x, t, cond, r))


# --------------------------------------------------------------------------------------------------------- word order

CAPTIONS = ["a red circle and a blue square", "a blue circle and a red square"]


@pytest.fixture(scope="module")
def read():
    """read(captions, ordered): embeddings of a small text encoder with the world's words; unordered is a bag of words."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = build_encoder(len(tokenizer), width=16, layers=2).eval()

    def encode(captions: list[str], ordered: bool = True) -> Condition:
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        with torch.no_grad():
            if ordered:
                embeds = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            else:
                embeds = encoder.get_input_embeddings()(tokens["input_ids"])
        return Condition(embeds, tokens["attention_mask"].float())

    return encode


def swap_change(backbone, cond: Condition) -> float:
    x, t = inputs(1)
    with torch.no_grad():
        first, second = backbone.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), cond)
    return float((first - second).abs().max())


def test_swapping_two_objects_in_a_caption_changes_the_velocity(make_backbone, read, family: str):
    backbone = make_backbone(family)
    assert sorted(CAPTIONS[0].split()) == sorted(CAPTIONS[1].split())
    assert swap_change(backbone, read(CAPTIONS)) > 1e-4
    assert swap_change(backbone, read([CAPTIONS[0]] * 2)) < 1e-6


def test_a_bag_of_words_cannot_tell_them_apart_in_sana(make_backbone, read):
    """Sana's cross-attention has no token positions, so the order must be in the embeddings: the test above can fail."""
    assert swap_change(make_backbone("sana"), read(CAPTIONS, ordered=False)) < 1e-5


# -------------------------------------------------------------------------------------------------- precision and LoRA


@pytest.mark.parametrize("target_time", ["none", "embedding"])
def test_bf16_autocast_is_finite_and_near_fp32(make_backbone, make_condition, family: str, target_time: str):
    x, t = inputs()
    backbone, cond = make_backbone(family, target_time), AffineShift(-1.0)(make_condition(3))
    full = backbone.velocity(x, t, cond, 0.5 * t)
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone.velocity(x, t, cond, 0.5 * t)
    low.float().square().mean().backward()
    assert torch.isfinite(low).all()
    assert float((low.float() - full).detach().norm() / full.detach().norm()) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("target_time", ["none", "embedding"])
def test_weights_in_bf16_work_and_fold(make_backbone, make_condition, family: str, target_time: str, stock):
    x, _ = inputs()
    backbone, cond, one = make_backbone(family, target_time).to(torch.bfloat16), make_condition(3, dtype=torch.bfloat16), torch.ones(3)
    with torch.no_grad():
        ours = backbone.velocity(x.bfloat16(), one, cond, 0 * one)
        folded = stock(backbone.fold_one_step(1.0), x.bfloat16(), one, cond)
    assert ours.dtype == torch.bfloat16 and torch.isfinite(ours).all()
    assert float((folded.float() - ours.float()).norm() / ours.float().norm()) < 0.05


@pytest.mark.parametrize("target_time", ["none", "embedding"])
def test_gradient_checkpointing_changes_no_gradient(make_backbone, make_condition, family: str, target_time: str):
    """Activations are computed again without the shift's hooks in sight."""
    x, t = inputs()
    cond, found = AffineShift(-0.7, 0.3)(make_condition(3)), []
    for checkpointing in (False, True):
        backbone = make_backbone(family, target_time).train()
        if checkpointing:
            backbone.transformer.enable_gradient_checkpointing()
        backbone.velocity(x, t, cond, 0.5 * t).square().mean().backward()
        found.append({k: p.grad for k, p in backbone.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for k, g in found[0].items():
        torch.testing.assert_close(found[1][k], g, rtol=1e-4, atol=1e-7, msg=k)


def lora(backbone, rank: int = 2) -> None:
    backbone.requires_grad_(False)
    backbone.transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(backbone.lora_targets), init_lora_weights="gaussian")
    )


def test_lora_starts_at_the_pretrained_network_and_trains_adapters_alone(make_backbone, make_condition, family: str):
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        before = backbone.velocity(x, t, cond)
    lora(backbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone.velocity(x, t, cond), before, rtol=1e-6, atol=1e-7)
    names = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n for n in names)
    backbone.velocity(x, t, cond).square().mean().backward()
    assert all((p.grad is not None) <= ("lora_" in n) for n, p in backbone.named_parameters())


def test_every_lora_target_is_found(make_backbone, family: str):
    backbone = make_backbone(family)
    modules = [n for n, _ in backbone.transformer.named_modules()]
    missing = [t for t in backbone.lora_targets if not any(n == t or n.endswith(f".{t}") for n in modules)]
    assert not missing


# ------------------------------------------------------------------------------------------------------------ features


def test_features_are_the_named_blocks_image_tokens(make_backbone, make_condition, family: str):
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        last, first = backbone.features(x, t, cond, [1, 0])
        width = 16 if family == "sana" else 32
        assert first.shape == last.shape == (3, 16 if family == "sana" else 4, width)
        assert not torch.equal(first, last)
        seen = []
        hook = backbone.transformer.norm_out.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        backbone.velocity(x, t, cond)
        hook.remove()
    assert torch.equal(seen[0], last)


def test_features_keep_their_gradient(make_backbone, make_condition, family: str):
    x, t = inputs()
    x.requires_grad_()
    (tokens,) = make_backbone(family).features(x, t, make_condition(3), [1])
    tokens.square().sum().backward()
    assert x.grad.abs().max() > 0


def test_parameter_count_is_that_of_the_transformer(make_backbone, family: str):
    backbone = make_backbone(family)
    assert backbone.parameter_count() == sum(p.numel() for p in backbone.transformer.parameters()) > 1000


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_transformer_folder_opens_as_its_family(make_backbone, make_condition, family: str, tmp_path):
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    backbone.transformer.save_pretrained(tmp_path / "transformer")
    loaded = load_backbone(tmp_path / "transformer")
    assert loaded.family == family and type(loaded) is BACKBONES[type(backbone.transformer).__name__]
    with torch.no_grad():
        assert torch.equal(loaded.velocity(x, t, cond), backbone.velocity(x, t, cond))


def test_a_damaged_transformer_folder_is_one_clear_line(make_backbone, family: str, tmp_path):
    folder = tmp_path / "transformer"
    with pytest.raises(UserError, match="not found; expected a diffusers transformer folder"):
        load_backbone(folder)
    make_backbone(family).transformer.save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole, config = weights.read_bytes(), (folder / "config.json").read_text()

    for content in (whole[: len(whole) // 2], b"", b"not weights at all"):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=weights.name) as error:
            load_backbone(folder)
        assert "\n" not in str(error.value) and "restore" in str(error.value)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(folder)
    weights.write_bytes(whole)

    (folder / "config.json").write_text(config.replace("Transformer2DModel", "Transformer9DModel"))
    with pytest.raises(UserError, match=r"unknown backbone '.*9DModel'; known: .*SanaTransformer2DModel"):
        load_backbone(folder)
    (folder / "config.json").write_text(config[: len(config) // 2])
    with pytest.raises(UserError, match="not JSON"):
        load_backbone(folder)


def test_weights_that_are_only_pickled_are_refused(make_backbone, family: str, tmp_path):
    folder = tmp_path / "transformer"
    backbone = make_backbone(family)
    backbone.transformer.save_pretrained(folder, safe_serialization=False)
    assert [p.suffix for p in folder.iterdir() if p.suffix != ".json"] == [".bin"]
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(folder)


def test_a_configuration_that_leaves_guidance_out_can_see_r():
    """As published ones do: diffusers then notes that its default was used, and would take it again."""
    small = dict(in_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_cross_attention_heads=2,
                 cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8, sample_size=4)  # fmt: skip
    transformer = SanaTransformer2DModel(**small)
    assert "guidance_embeds" in transformer.config["_use_default_values"]
    student = SanaBackbone(transformer).with_target_time()
    assert student.target_time == "embedding" and student.transformer.config.guidance_embeds
    assert not student.fold_one_step(1.0).config.guidance_embeds
