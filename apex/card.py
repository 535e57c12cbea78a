"""The model card of an exported run, README.md as the model hub reads it. Written at export; `snakemake cards` adds what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from apex.data import overlap
from apex.escape import code as as_code
from apex.escape import markdown

LORA_FILE = "pytorch_lora_weights.safetensors"  # in a run's folder `lora`
FOLDED = "one_step/transformer"  # in a run's folder: exact for one time grid
GUIDED = "transformer (guidance = 1000 (t - r))"  # the transformer, when the caller passes that guidance
LIMITS = {
    "world": "It draws rendered scenes of coloured shapes at the size that it was trained at, and nothing else. Its scores are of "
    "detectors that know this world alone: they compare rows of one table, and say nothing about photographs.",
    "": "Its scores hold for the prompts, evaluators and resolution named here. It inherits what its teacher and its training data "
    "cannot do, show wrongly or should not show.",
}
OPTIMIZERS = {"adamw": "AdamW", "adamw8bit": "AdamW with moments of 8 bits"}
SAMPLED = {
    "few": "fresh noise between steps, `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)` in stock diffusers",
    "any": "no fresh noise between steps",
    "multi": "Euler's steps",
}
# Family -> the stock pipeline, its transformer's class, and what the call needs besides.
STOCK = {
    "sana": ("SanaPipeline", "SanaTransformer2DModel", ", guidance_scale=1.0"),
    "qwen_image": ("QwenImagePipeline", "QwenImageTransformer2DModel", ""),
}
CODE = """
```python
{imports}from diffusers import FlowMatchEulerDiscreteScheduler, {names}

pipe = {pipeline}.from_pretrained({teacher})
{load}
pipe.scheduler = FlowMatchEulerDiscreteScheduler({scheduler})
image = pipe("a red circle left of a blue square", sigmas={sigmas}, height={side}, width={side}{call}).images[0]
```
"""
HOOK = """gaps = cycle({gaps})  # 1000 (t - r) of each step, which the stock pipeline does not pass
pipe.transformer.register_forward_pre_hook(
    lambda _, given, named: (given, named | {{"guidance": torch.full_like(named["timestep"], next(gaps))}}), with_kwargs=True
)"""
LICENCE = {
    "world": "Teacher, data and weights were made by this suite from nothing.",
    "": "Its weights are changed from the teacher's, so the teacher's licence holds for them, and the terms of the training data besides.",
}


def kind(made: Mapping[str, Any]) -> str:
    """`world` where the data are rendered, else empty."""
    return "world" if made["run"]["data"]["source"] == "world" else ""


def front_matter(made: Mapping[str, Any]) -> str:
    """The head that the hub reads."""
    values: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["one-step", "distillation", made["method"], made["backbone"]],
        "license": "other",
    }
    if hub := made.get("hub"):
        values["base_model"] = hub.partition("@")[0]
        values["base_model_relation"] = "adapter" if made["tuning"] == "lora" else "finetune"
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def gaps(sigmas: Sequence[float], mode: str) -> list[float]:
    """t - r of each step of `apex.flow.sample` on this grid."""
    following = [*sigmas[1:], 0.0]
    return [{"few": now, "any": now - then, "multi": 0.0}[mode] for now, then in zip(sigmas, following, strict=True)]


def stock_places(recipe: Mapping[str, Any]) -> dict[str, list[int]]:
    """Place in the run's folder -> the NFEs that stock diffusers reproduces from it, on the run's own time grids.

    In runs from before `stock_sigmas` the one step is folded at t = 1 whatever their grid, and `transformer` of a LoRA run is its LoRA.
    """
    exact, places = folds(recipe), {}
    for place, nfes in recipe["stock"].items():
        kept = [n for n in nfes if place not in exact or exact[place].get(str(n)) == recipe["sigmas"].get(str(n))]
        if kept:
            places["lora" if recipe["tuning"] == "lora" else place] = kept
    return places


def folds(recipe: Mapping[str, Any]) -> Mapping[str, Mapping[str, list[float]]]:
    """Place -> NFE -> the one time grid for which it is exact."""
    return recipe.get("stock_sigmas", {FOLDED: {"1": [1.0]}} if FOLDED in recipe["stock"] else {})


def stock_words(recipe: Mapping[str, Any]) -> str:
    """`stock_places` in words, and which folded network is none of them."""
    places, exact = stock_places(recipe), folds(recipe)
    words = "; ".join(f"`{place}`: NFE {', '.join(map(str, nfes))}" for place, nfes in places.items()) or "No NFE without this suite"
    for place, grids in exact.items():
        for nfe, grid in grids.items():
            if place in places:
                words += f". `{place}` is exact for `sigmas={grid}` alone"
            else:
                words += f". `{place}` is exact for `sigmas={grid}`, but this run samples NFE {nfe} at `sigmas={recipe['sigmas'].get(nfe)}`"
    if GUIDED in places:
        words += ". No stock pipeline passes that guidance: a hook does, or a loop over transformer and scheduler"
    return f"{words}."


def code(made: Mapping[str, Any], recipe: Mapping[str, Any], place: str, nfe: int) -> str:
    """The lines of stock diffusers that draw with the run at this NFE from one of its `stock_places`; '' where no stock pipeline has the
    text encoder: the world's is this suite's."""
    if kind(made) or recipe["family"] not in STOCK:
        return ""
    pipeline, transformer, call = STOCK[recipe["family"]]
    lora, guided = place == "lora", place == GUIDED
    where = "transformer" if guided else place
    if not lora:
        load = f'pipe.transformer = {transformer}.from_pretrained("{where}")'
    elif place in recipe["stock"]:
        load = 'pipe.load_lora_weights("lora")'
    else:  # an older run: its keys have no prefix
        load = f'pipe.transformer.load_lora_adapter("lora", prefix=None, weight_name="{LORA_FILE}")'
    if guided:
        steps = [round(1000 * gap, 6) for gap in gaps(recipe["sigmas"][str(nfe)], recipe["mode"])]
        load = f"{load}\n{HOOK.format(gaps=steps)}"
    return CODE.format(
        imports="from itertools import cycle\n\nimport torch\n" if guided else "",
        names=pipeline if lora else f"{pipeline}, {transformer}",
        pipeline=pipeline,
        teacher=json.dumps((made.get("hub") or made["run"]["pipeline"]).partition("@")[0]),
        load=load,
        scheduler="shift=1.0, stochastic_sampling=True" if recipe["mode"] == "few" and nfe > 1 else "shift=1.0",
        sigmas=recipe["sigmas"][str(nfe)],
        side=made["run"]["data"]["resolution"],
        call=call,
    )


def numbers_table(numbers: Sequence[Mapping[str, str]]) -> str:
    """Metrics as Markdown: metric, NFE, value with its interval, n, seeds."""
    head = ("metric", "NFE", "value", "n", "seeds")
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | ---: | ---: | ---: |"]
    return "\n".join([*lines, *("| " + " | ".join(markdown(one[key]) for key in head) + " |" for one in numbers)])


def text(made: Mapping[str, Any], recipe: Mapping[str, Any], *, numbers: Sequence[Mapping[str, str]] = (), remarks: str = "") -> str:
    """The card.

    made, recipe: the run's made.json and sampling.json. numbers: what was measured, as `numbers_table` takes it.
    remarks: why these numbers do not stand unmarked.
    """
    run, training, train = made["run"], made["training"], made["run"]["train"]
    data, teacher = run["data"], markdown(made["hub"]) if made.get("hub") else as_code(run["pipeline"])
    rank = f" of rank {run['lora']['rank']}" if run.get("lora") else ""
    source = data["source"]
    if source == "world":
        source = f"{data['scenes']:,} rendered scenes"
    elif source == "teacher":
        drawn = data["teacher"]
        many = f"{drawn['count']:,} pictures" if drawn.get("count") else "a picture of every prompt"
        source = f"{many} that the teacher drew in {drawn['steps']} steps"
    else:
        source = markdown(source)
    places = sorted(stock_places(recipe).items(), key=lambda one: one[0] == GUIDED)  # what needs no hook first
    lines = "".join(code(made, recipe, place, next((n for n in nfes if place == GUIDED and n > 1), nfes[0])) for place, nfes in places)
    grids = "\n".join(f"- NFE {nfe}: `sigmas={grid}`" for nfe, grid in recipe["sigmas"].items())
    stopped = (
        f"\n**It stopped early: {markdown(training['stopped'])}. These are the last good weights.**\n" if training.get("stopped") else ""
    )
    passes = f"{training['forward_equivalents']:,} forward passes of the teacher in training FLOPs ({training['flops']:.3g})"
    seen = "".join(
        f"\n| prompts in training | {markdown(overlap.words(name, found))} |" for name, found in made.get("prompts_seen", {}).items()
    )
    left_out = made.get("left_out", {})
    if skipped := left_out.get("skipped"):
        seen += f"\n| left out | {skipped['count']:,} samples and files with a defect |"
    if cut := left_out.get("captions_cut"):
        seen += f"\n| captions cut | {cut:,}, because they have more tokens than the text encoder takes |"
    params = ", ".join(f"{key} {value}" for key, value in made["params"].items() if value is not None)
    hardware, commit = markdown(made["hardware"]), markdown(made["git_commit"])
    optimizer = OPTIMIZERS[train.get("optimizer", "adamw")]
    measured = numbers_table(numbers) if numbers else "Not measured yet."
    measured += f"\n\n**{markdown(remarks)}**" if remarks else ""
    return f"""{front_matter(made)}
# {markdown(made["row"])} ({markdown(made["profile"])}, seed {made["seed"]})

A text-to-image generator of few steps, distilled from {teacher} by {as_code(made["method"])} ({markdown(made["citation"])}).
{stopped}
## How it was made

| | |
| --- | --- |
| tuning | {made["tuning"]}{rank}; {made["trainable_parameters"]:,} parameters trained, {made["parameters"]:,} in the network |
| data | {source}, {data["resolution"]} px |{seen}
| budget | {passes}, {training["steps"]:,} steps |
| optimiser | {optimizer}, learning rate {train["learning_rate"]:g}, betas {train["betas"]}, mean {train["ema"]:g}, {train["precision"]} |
| settings | {markdown(params)} |
| made on | {hardware}, {training["wall_seconds"] / 3600:.2g} hours, commit {commit}, run {made["run_hash"]} |

## What was measured

{measured}

Intervals are 95%, GenEval's by a bootstrap over prompts within task, and over seeds where there are several; those of seconds are
quartiles.

## Use in stock diffusers

{stock_words(recipe)}
{lines}
{grids}

Sampled as `{recipe["mode"]}`: {SAMPLED[recipe["mode"]]}.

## Limits

{LIMITS[kind(made)]}

## Licence

{LICENCE[kind(made)]}
"""
