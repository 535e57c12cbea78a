# Training data: rendered scenes or the teacher's images as WebDataset shards, then latents encoded once, and captions where the profile
# says so.


rule shards:
    output:
        directory(PLAN.shards),
    log:
        f"{PLAN.root}/logs/shards.log",
    priority: 20  # all training waits for it
    conda:
        ENVIRONMENT
    params:
        scenes=CONFIG.data.scenes,
        resolution=CONFIG.data.resolution,
        seed=CONFIG.data.seed,
        captions=CONFIG.data.captions,
    shell:
        "python -m apex.data.shards world --out {output:q} --scenes {params.scenes:q} --captions {params.captions:q}"
        " --resolution {params.resolution:q} --seed {params.seed:q} > {log:q} 2>&1"


# `snakemake synthesise`: images of the teacher, where `data.source` is teacher.
rule synthesise:
    input:
        teacher=teacher_input,
    output:
        directory(PLAN.synthesised),
    log:
        f"{PLAN.root}/logs/synthesise.log",
    priority: 20
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        teacher=TEACHER,
        pipeline=lambda wildcards: str(CONFIG.pipeline_path),
        drawn=lambda wildcards: CONFIG.data_of_runs.model_dump_json(include={"teacher", "resolution", "seed"}),
        prompts=fingerprint(locate(CONFIG.data.teacher.prompts)) if CONFIG.data.teacher else "",
        precision=CONFIG.sampling.precision,
    shell:
        "python -m apex.data.synthesise {params.config:q} --out {output:q} > {log:q} 2>&1"


rule cache:
    input:
        data={"world": PLAN.shards, "teacher": PLAN.synthesised}.get(CONFIG.data.source, given(CONFIG.data.source)),
        teacher=teacher_input,
    output:
        directory(PLAN.cache),
    log:
        f"{PLAN.root}/logs/cache.log",
    priority: 20
    conda:
        ENVIRONMENT
    params:
        teacher=TEACHER,
        pipeline=lambda wildcards: str(CONFIG.pipeline_path),
        source=lambda wildcards, input: input.data or CONFIG.data.source,
        resolution=CONFIG.data.resolution,
        skipping=skipping,
    shell:
        "python -m apex.data.cache --pipeline {params.pipeline:q} --data {params.source:q} {params.skipping:q}"
        " --resolution {params.resolution:q} --out {output:q} > {log:q} 2>&1"


# Where `data.embeddings` is disk.
rule embeddings:
    input:
        cache=PLAN.cache,
        teacher=teacher_input,
    output:
        directory(PLAN.embeddings),
    log:
        f"{PLAN.root}/logs/embeddings-{{dtype}}.log",
    wildcard_constraints:
        dtype="fp32|bf16",
    priority: 20
    conda:
        ENVIRONMENT
    params:
        teacher=TEACHER,
        pipeline=lambda wildcards: str(CONFIG.pipeline_path),
    shell:
        "python -m apex.data.embeddings --pipeline {params.pipeline:q} --cache {input.cache:q} --dtype {wildcards.dtype:q}"
        " --out {output:q} > {log:q} 2>&1"
