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
        "python -m apex.data.shards world --out {output} --scenes {params.scenes} --captions {params.captions}"
        " --resolution {params.resolution} --seed {params.seed} > {log} 2>&1"


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
        pipeline=str(CONFIG.pipeline_path),
        drawn=CONFIG.data_of_runs.model_dump_json(include={"teacher", "resolution", "seed"}),
        prompts=fingerprint(locate(CONFIG.data.teacher.prompts)) if CONFIG.data.teacher else "",
        precision=CONFIG.sampling.precision,
    shell:
        "python -m apex.data.synthesise {params.config} --out {output} 2>&1 | tee {log}"


rule cache:
    input:
        data={"world": PLAN.shards, "teacher": PLAN.synthesised}.get(CONFIG.data.source, ancient(CONFIG.data.source)),
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
        pipeline=str(CONFIG.pipeline_path),
        resolution=CONFIG.data.resolution,
        on_error=CONFIG.data.on_error,
        skip_limit=CONFIG.data.skip_limit,
    shell:
        "python -m apex.data.cache --pipeline {params.pipeline} --data {input.data}"
        " --on-error {params.on_error} --skip-limit {params.skip_limit}"
        " --resolution {params.resolution} --out {output} > {log} 2>&1"


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
        pipeline=str(CONFIG.pipeline_path),
    shell:
        "python -m apex.data.embeddings --pipeline {params.pipeline} --cache {input.cache} --dtype {wildcards.dtype}"
        " --out {output} > {log} 2>&1"
