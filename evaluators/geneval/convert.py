"""Converts mmdet's Mask2Former (Swin backbone) to the one of transformers, which needs no compiler.

    python -m evaluators.geneval.convert --weights mask2former_swin-s-....pth --out results/assets/mask2former/transformers

Writes `config.json` and `model.safetensors`, which `Mask2FormerForUniversalSegmentation.from_pretrained` reads too, and `made.json`: from
which file. The detector takes this folder as well as the .pth itself. Every tensor of the .pth is used, and every one of the network is
given, or the conversion ends; `python -m evaluators.geneval.agreement` proves that both networks compute the same.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex.command import Parser
from apex.errors import UserError, readable, run_command
from apex.files import atomic_folder, write_atomic
from apex.kinds import CONVERTED
from apex.provenance import file_sha256
from evaluators.assets import find
from evaluators.geneval import ASSET
from evaluators.geneval.coco import COCO
from evaluators.images import some

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Mask2FormerForUniversalSegmentation

POINTS, LEVELS = 4, 3  # of the deformable attention; fixed in transformers

_SWIN, _NORMS = "model.pixel_level_module.encoder.swin.", "model.pixel_level_module.encoder.hidden_states_norms."
_PIXELS, _QUERIES = "model.pixel_level_module.decoder.", "model.transformer_module."
# mmdet's tensors -> transformers'. "#" is a number, "*" is weight or bias; both are carried over. "{qkv}" stands for q, k and v, which
# mmdet keeps one upon the other in one tensor.
NAMES = {
    "backbone.patch_embed.projection.*": _SWIN + "embeddings.patch_embeddings.projection.*",
    "backbone.patch_embed.norm.*": _SWIN + "embeddings.norm.*",
    "backbone.stages.#.blocks.#.norm1.*": _SWIN + "encoder.layers.#.blocks.#.layernorm_before.*",
    "backbone.stages.#.blocks.#.norm2.*": _SWIN + "encoder.layers.#.blocks.#.layernorm_after.*",
    "backbone.stages.#.blocks.#.attn.w_msa.relative_position_bias_table": _SWIN
    + "encoder.layers.#.blocks.#.attention.relative_position_bias.relative_position_bias_table",
    "backbone.stages.#.blocks.#.attn.w_msa.qkv.*": _SWIN + "encoder.layers.#.blocks.#.attention.{qkv}_proj.*",
    "backbone.stages.#.blocks.#.attn.w_msa.proj.*": _SWIN + "encoder.layers.#.blocks.#.attention.o_proj.*",
    "backbone.stages.#.blocks.#.ffn.layers.0.0.*": _SWIN + "encoder.layers.#.blocks.#.mlp.fc1.*",
    "backbone.stages.#.blocks.#.ffn.layers.1.*": _SWIN + "encoder.layers.#.blocks.#.mlp.fc2.*",
    "backbone.stages.#.downsample.norm.*": _SWIN + "encoder.layers.#.downsample.norm.*",
    "backbone.stages.#.downsample.reduction.*": _SWIN + "encoder.layers.#.downsample.reduction.*",
    **{f"backbone.norm{i}.*": f"{_NORMS}stage{i + 1}.*" for i in range(4)},
    "panoptic_head.pixel_decoder.input_convs.#.conv.*": _PIXELS + "input_projections.#.0.*",
    "panoptic_head.pixel_decoder.input_convs.#.gn.*": _PIXELS + "input_projections.#.1.*",
    "panoptic_head.pixel_decoder.level_encoding.weight": _PIXELS + "level_embed",
    **{
        f"panoptic_head.pixel_decoder.encoder.layers.#.self_attn.{part}.*": f"{_PIXELS}encoder.layers.#.self_attn.{part}.*"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    },
    "panoptic_head.pixel_decoder.encoder.layers.#.norms.0.*": _PIXELS + "encoder.layers.#.self_attn_layer_norm.*",
    "panoptic_head.pixel_decoder.encoder.layers.#.ffn.layers.0.0.*": _PIXELS + "encoder.layers.#.fc1.*",
    "panoptic_head.pixel_decoder.encoder.layers.#.ffn.layers.1.*": _PIXELS + "encoder.layers.#.fc2.*",
    "panoptic_head.pixel_decoder.encoder.layers.#.norms.1.*": _PIXELS + "encoder.layers.#.final_layer_norm.*",
    "panoptic_head.pixel_decoder.lateral_convs.0.conv.*": _PIXELS + "adapter_1.0.*",
    "panoptic_head.pixel_decoder.lateral_convs.0.gn.*": _PIXELS + "adapter_1.1.*",
    "panoptic_head.pixel_decoder.output_convs.0.conv.*": _PIXELS + "layer_1.0.*",
    "panoptic_head.pixel_decoder.output_convs.0.gn.*": _PIXELS + "layer_1.1.*",
    "panoptic_head.pixel_decoder.mask_feature.*": _PIXELS + "mask_projection.*",
    "panoptic_head.transformer_decoder.layers.#.cross_attn.attn.in_proj_*": _QUERIES + "decoder.layers.#.cross_attn.in_proj_*",
    "panoptic_head.transformer_decoder.layers.#.cross_attn.attn.out_proj.*": _QUERIES + "decoder.layers.#.cross_attn.out_proj.*",
    "panoptic_head.transformer_decoder.layers.#.norms.0.*": _QUERIES + "decoder.layers.#.cross_attn_layer_norm.*",
    "panoptic_head.transformer_decoder.layers.#.self_attn.attn.in_proj_*": _QUERIES + "decoder.layers.#.self_attn.{qkv}_proj.*",
    "panoptic_head.transformer_decoder.layers.#.self_attn.attn.out_proj.*": _QUERIES + "decoder.layers.#.self_attn.out_proj.*",
    "panoptic_head.transformer_decoder.layers.#.norms.1.*": _QUERIES + "decoder.layers.#.self_attn_layer_norm.*",
    "panoptic_head.transformer_decoder.layers.#.ffn.layers.0.0.*": _QUERIES + "decoder.layers.#.fc1.*",
    "panoptic_head.transformer_decoder.layers.#.ffn.layers.1.*": _QUERIES + "decoder.layers.#.fc2.*",
    "panoptic_head.transformer_decoder.layers.#.norms.2.*": _QUERIES + "decoder.layers.#.final_layer_norm.*",
    "panoptic_head.transformer_decoder.post_norm.*": _QUERIES + "decoder.layernorm.*",
    "panoptic_head.query_feat.weight": _QUERIES + "queries_features.weight",
    "panoptic_head.query_embed.weight": _QUERIES + "queries_embedder.weight",
    "panoptic_head.level_embed.weight": _QUERIES + "level_embed.weight",
    "panoptic_head.cls_embed.*": "class_predictor.*",
    **{f"panoptic_head.mask_embed.{2 * i}.*": f"{_QUERIES}decoder.mask_predictor.mask_embedder.{i}.0.*" for i in range(3)},
}
_PATTERNS = [
    (
        re.compile(re.escape(theirs).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")),
        re.sub(r"[#*]", "{}", ours.replace("{qkv}", "{{qkv}}")),
    )
    for theirs, ours in NAMES.items()
]
# Made from the configuration in both; what mmdet saves is checked against it.
INDEX = "relative_position_index"
# What transformers' network has beside mmdet's and shapes no output: the last norm of a Swin that is no backbone, the loss's weights.
UNUSED = (_SWIN + "layernorm.", "criterion.")


def renamed(name: str) -> str | None:
    """The name in transformers of a tensor of mmdet's, with {qkv} where it is three; None where it is unknown."""
    for pattern, template in _PATTERNS:
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    return None


def neighbours_outermost(tensor: Tensor) -> Tensor:
    """Reorders the 4C inputs of Swin's patch merging, the last axis. mmdet unfolds: channel, row, column, the column innermost.
    transformers stacks: column, row, channel."""
    split = tensor.unflatten(-1, (-1, 2, 2))
    return split.transpose(-3, -1).flatten(-3).contiguous()


def converted(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """mmdet's weights under transformers' names.

    Raises:
        UserError: beginning with `where`, and naming the tensors that are not known.
    """
    unknown = [name for name in state if renamed(name) is None and not name.endswith("." + INDEX)]
    if unknown:
        raise UserError(f"{where}: {some(unknown)} not known; expected mmdet 3's Mask2Former with a Swin backbone")
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("." + INDEX):
            continue
        ours = renamed(name)
        if "{qkv}" in ours:
            found |= {ours.format(qkv=part): each.contiguous() for part, each in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[ours] = neighbours_outermost(tensor) if ".downsample." in ours else tensor
    return found


def configuration(state: dict[str, Tensor], where: str) -> dict[str, Any]:
    """The configuration of transformers' Mask2Former for mmdet's weights, read off their shapes.

    Raises:
        UserError: a tensor that is needed for this is missing or has another shape than a Mask2Former's.
    """

    def count(pattern: str) -> int:
        """How many numbers stand at the group of the pattern."""
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    head, pixels = "panoptic_head.", "panoptic_head.pixel_decoder."
    try:
        depths = [count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(4)]
        tables = [state[f"backbone.stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table"].shape for i in range(4)]
        embed, hidden = state["backbone.patch_embed.norm.weight"].shape[0], state[head + "query_feat.weight"].shape[1]
        offsets = state[pixels + "encoder.layers.0.self_attn.sampling_offsets.bias"].shape[0]
        window = (round(tables[0][0] ** 0.5) + 1) // 2
        swin = {
            "model_type": "swin",
            "embed_dim": embed,
            "depths": depths,
            "num_heads": [table[1] for table in tables],
            "window_size": window,
            "mlp_ratio": state["backbone.stages.0.blocks.0.ffn.layers.0.0.weight"].shape[0] / embed,
            "patch_size": state["backbone.patch_embed.projection.weight"].shape[-1],
            "drop_path_rate": 0.0,
            "out_features": [f"stage{i + 1}" for i in range(4)],
        }
        return {
            "model_type": "mask2former",
            "architectures": ["Mask2FormerForUniversalSegmentation"],
            "backbone_config": swin,
            "feature_size": state[pixels + "mask_feature.weight"].shape[1],
            "mask_feature_size": state[pixels + "mask_feature.weight"].shape[0],
            "hidden_dim": hidden,
            "num_attention_heads": offsets // (LEVELS * POINTS * 2),
            "encoder_layers": count(r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."),
            "encoder_feedforward_dim": state[pixels + "encoder.layers.0.ffn.layers.0.0.bias"].shape[0],
            "decoder_layers": count(r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.") + 1,  # transformers counts one more than it has
            "dim_feedforward": state[head + "transformer_decoder.layers.0.ffn.layers.0.0.bias"].shape[0],
            "num_queries": state[head + "query_feat.weight"].shape[0],
            "num_labels": state[head + "cls_embed.bias"].shape[0] - 1,
        }
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing; expected mmdet 3's Mask2Former with a Swin backbone") from error


def build(
    config: dict[str, Any], state: dict[str, Tensor], where: str, index: dict[str, Tensor] | None = None
) -> Mask2FormerForUniversalSegmentation:
    """transformers' network with these weights (its names), in evaluation mode: all are used, and none is missing.

    `index`: mmdet's tables of relative positions, held against transformers' own.

    Raises:
        UserError: beginning with `where`: the configuration is none, or tensors are missing, left over or of another shape.
    """
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from apex.weights import check_finite

    with readable(Path(where), "convert the weights again: python -m evaluators.geneval.convert"):
        config = Mask2FormerConfig.from_dict(config)
        if config.num_labels == len(COCO):
            config.id2label, config.label2id = dict(enumerate(COCO)), {name: i for i, name in enumerate(COCO)}
        with torch.device("meta"):
            names = {k: v.shape for k, v in Mask2FormerForUniversalSegmentation(config).state_dict().items()}
    needed = {k: shape for k, shape in names.items() if not k.startswith(UNUSED)}
    given = {k: v for k, v in state.items() if not k.startswith(UNUSED)}
    faults = [f"{k} is missing" for k in needed if k not in given] + [f"{k} is left over" for k in given if k not in needed]
    faults += [f"{k} is {tuple(given[k].shape)}, expected {tuple(needed[k])}" for k in needed if k in given and given[k].shape != needed[k]]
    if faults:
        raise UserError(f"{where}: {some(faults)}; expected all weights of a Mask2Former with a Swin backbone")
    check_finite(given, {}, Path(where), "give weights that are whole")
    model = Mask2FormerForUniversalSegmentation(config)
    model.load_state_dict(given, strict=False)  # what is not given is UNUSED: checked above
    for name, table in (index or {}).items():
        stage, block = re.findall(r"\.(\d+)\.", name)[:2]
        own = model.model.pixel_level_module.encoder.swin.encoder.layers[int(stage)].blocks[int(block)].attention.relative_position_bias
        if not torch.equal(own.relative_position_index.view(-1), table.view(-1)):
            raise UserError(
                f"{where}: {name} orders the positions otherwise than mmdet 3; expected the official weights or ones trained with it"
            )
    return model.eval().requires_grad_(False)


def from_mmdet(path: Path) -> Mask2FormerForUniversalSegmentation:
    """The network of transformers with the weights of an mmdet checkpoint (.pth)."""
    from evaluators.geneval.checkpoint import read_state

    state = read_state(path)
    index = {name: tensor for name, tensor in state.items() if name.endswith("." + INDEX)}
    return build(configuration(state, str(path)), converted(state, str(path)), str(path), index)


def from_folder(folder: Path) -> Mask2FormerForUniversalSegmentation:
    """The network that `save` wrote."""
    from safetensors.torch import load_file

    hint = "convert the weights again: python -m evaluators.geneval.convert"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; {hint}")
    with readable(folder, hint):
        config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    return build(config, state, str(folder))


def save(model: Mask2FormerForUniversalSegmentation, folder: Path, source: Path) -> None:
    """Writes `config.json`, `model.safetensors` and `made.json`."""
    from safetensors.torch import save as to_bytes

    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    with atomic_folder(folder, CONVERTED) as out:
        write_atomic(out / "config.json", model.config.to_json_string(use_diff=False))
        write_atomic(out / "made.json", json.dumps({"from": source.name, "sha256": file_sha256(source)}, indent=1) + "\n")
        write_atomic(out / "model.safetensors", to_bytes(weights, metadata={"format": "pt"}))


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.geneval.convert", __doc__)
    parser.add_argument("--weights", type=Path, help=f"mmdet's checkpoint, .pth (default: the fetched {ASSET})")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args = parser.parse_args(argv)
    weights = find(ASSET, args.weights, "--weights")
    model = from_mmdet(weights)
    save(model, args.out, weights)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters())} parameters from {weights.name}, {file_sha256(weights)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
