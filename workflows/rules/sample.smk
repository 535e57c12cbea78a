# Images, made once per point for all its prompt sets, in GenEval's layout, and scored many times. Where they are not finite the folder says
# so (`--keep-failed`), its records too, and the other rows go on.

IMAGES = [PLAN.images.replace("{split}", split) for split in CONFIG.sampled]
PROMPTS = {split: fingerprint(CONFIG.prompts_path(split)) for split in CONFIG.sampled}
AMOUNT = CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task", "sets"})


rule sample:
    input:
        run=PLAN.run,
    output:
        [directory(images) for images in IMAGES],
    log:
        f"{PLAN.root}/logs/sample/{{row}}-nfe{{nfe}}-seed{{seed}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.all_methods),
        nfe=r"\d+",
        seed=r"\d+",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        sampling=lambda wildcards: CONFIG.sampling.model_dump_json(),
        prompts=PROMPTS,
        splits=CONFIG.sampled,
        images=lambda wildcards: images_of(wildcards),
        amount=lambda wildcards: AMOUNT,
    shell:
        "python -m apex.sample {params.config:q} --row {wildcards.row:q} --run {input.run:q} --nfe {wildcards.nfe:q}"
        " --seed {wildcards.seed:q} --split {params.splits:q} --out {params.images:q} --keep-failed > {log:q} 2>&1"


rule sample_teacher:
    input:
        teacher=teacher_input,
    output:
        [directory(images.replace("{row}", "teacher")) for images in IMAGES],
    log:
        f"{PLAN.root}/logs/sample/teacher-nfe{{nfe}}-seed{{seed}}.log",
    wildcard_constraints:
        nfe=r"\d+",
        seed=r"\d+",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        teacher=TEACHER,
        pipeline=lambda wildcards: str(CONFIG.pipeline_path),
        guidance=CONFIG.guidance,
        prompts=PROMPTS,
        splits=CONFIG.sampled,
        images=lambda wildcards: images_of(wildcards, "teacher"),
        amount=lambda wildcards: AMOUNT,
    shell:
        "python -m apex.sample {params.config:q} --row teacher --run {params.pipeline:q} --nfe {wildcards.nfe:q}"
        " --seed {wildcards.seed:q} --split {params.splits:q} --out {params.images:q} --keep-failed > {log:q} 2>&1"


# A published model from the hub or a folder; `snakemake fetch_checkpoints` fetches alone.
rule sample_checkpoint:
    input:
        lambda wildcards: checkpoint_folders(wildcards.row),
    output:
        [directory(images) for images in IMAGES],
    log:
        f"{PLAN.root}/logs/sample/{{row}}-nfe{{nfe}}-seed{{seed}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.checkpoint_rows),
        nfe=r"\d+",
        seed=r"\d+",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        checkpoint=lambda wildcards: checkpoint_content(wildcards.row),
        sampling=lambda wildcards: CONFIG.sampling.model_dump_json(),
        resolution=CONFIG.data.resolution,
        prompts=PROMPTS,
        splits=CONFIG.sampled,
        images=lambda wildcards: images_of(wildcards),
        amount=lambda wildcards: AMOUNT,
    shell:
        "python -m apex.sample {params.config:q} --row {wildcards.row:q} --nfe {wildcards.nfe:q}"
        " --seed {wildcards.seed:q} --split {params.splits:q} --out {params.images:q} --keep-failed > {log:q} 2>&1"


rule sample_reference:
    output:
        [directory(images.replace("nfe{nfe}", "nfe0")) for images in IMAGES],
    log:
        f"{PLAN.root}/logs/sample/{{row}}-seed{{seed}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.references),
        seed=r"\d+",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        resolution=CONFIG.data.resolution,
        prompts=PROMPTS,
        splits=CONFIG.sampled,
        images=lambda wildcards: images_of(wildcards),
        amount=lambda wildcards: AMOUNT,
    shell:
        "python -m apex.sample {params.config:q} --row {wildcards.row:q} --nfe 0 --seed {wildcards.seed:q}"
        " --split {params.splits:q} --out {params.images:q} > {log:q} 2>&1"
