# Training data: rendered scenes as WebDataset shards, then latents encoded once.


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


rule cache:
    input:
        data=PLAN.shards if CONFIG.data.source == "world" else ancient(CONFIG.data.source),
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
    shell:
        "python -m apex.data.cache --pipeline {params.pipeline} --data {input.data}"
        " --resolution {params.resolution} --out {output} > {log} 2>&1"
