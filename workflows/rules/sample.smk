# Images in GenEval's layout, made once for all prompt sets and scored many times. One job makes those of a row at all its NFEs. Where they are
# not finite the folder says so (`--keep-failed`), its records too, and the other rows go on.

PROMPTS = {split: fingerprint(CONFIG.prompts_path(split)) for split in CONFIG.sampled}
AMOUNT = CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task", "sets"})


for _group in PLAN.drawn():

    rule:
        name:
            f"sample{_group.suffix}"
        input:
            lambda wildcards, group=_group: network_input(wildcards, group),
        output:
            [directory(images) for images in _group.paths(PLAN.images, CONFIG.sampled)],
        log:
            f"{PLAN.root}/logs/sample/{_group.stem}.log",
        wildcard_constraints:
            **_group.constraints,
        conda:
            ENVIRONMENT
        params:
            config=config_arguments,
            point=lambda wildcards, group=_group: point_words(wildcards, group),
            content=lambda wildcards, group=_group: network_content(wildcards, group),
            sampling=lambda wildcards: CONFIG.sampling.model_dump_json(),
            resolution=CONFIG.data.resolution,
            prompts=PROMPTS,
            splits=CONFIG.sampled,
            images=lambda wildcards: left_open(PLAN.images, wildcards),
            amount=lambda wildcards: AMOUNT,
        shell:
            "python -m apex.sample {params.config:q} {params.point:q} --seed {wildcards.seed:q} --split {params.splits:q}"
            " --out {params.images:q} --keep-failed > {log:q} 2>&1"
