# Images, made once per point and prompt set, in GenEval's layout, and scored many times.


rule sample:
    input:
        run=PLAN.run,
    output:
        directory(PLAN.images),
    log:
        f"{PLAN.root}/logs/sample/{{row}}-nfe{{nfe}}-seed{{seed}}-{{split}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.methods),
        nfe=r"\d+",
        seed=r"\d+",
        split=one_of(CONFIG.splits),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        sampling=CONFIG.sampling.model_dump_json(),
        prompts=prompts_identity,
        amount=CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task"}),
        file=prompts_file,
    shell:
        "python -m apex.sample {params.config} --row {wildcards.row} --run {input.run} --nfe {wildcards.nfe}"
        " --seed {wildcards.seed} --prompts {params.file} --split {wildcards.split} --out {output} > {log} 2>&1"


rule sample_teacher:
    input:
        teacher=teacher_input,
    output:
        directory(PLAN.images.replace("{row}", "teacher")),
    log:
        f"{PLAN.root}/logs/sample/teacher-nfe{{nfe}}-seed{{seed}}-{{split}}.log",
    wildcard_constraints:
        nfe=r"\d+",
        seed=r"\d+",
        split=one_of(CONFIG.splits),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        teacher=TEACHER,
        pipeline=str(CONFIG.pipeline_path),
        guidance=CONFIG.guidance,
        prompts=prompts_identity,
        amount=CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task"}),
        file=prompts_file,
    shell:
        "python -m apex.sample {params.config} --row teacher --run {params.pipeline} --nfe {wildcards.nfe}"
        " --seed {wildcards.seed} --prompts {params.file} --split {wildcards.split} --out {output} > {log} 2>&1"


rule sample_reference:
    output:
        directory(PLAN.images.replace("nfe{nfe}", "nfe0")),
    log:
        f"{PLAN.root}/logs/sample/{{row}}-seed{{seed}}-{{split}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.references),
        seed=r"\d+",
        split=one_of(CONFIG.splits),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        resolution=CONFIG.data.resolution,
        prompts=prompts_identity,
        amount=CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task"}),
        file=prompts_file,
    shell:
        "python -m apex.sample {params.config} --row {wildcards.row} --nfe 0 --seed {wildcards.seed}"
        " --prompts {params.file} --split {wildcards.split} --out {output} > {log} 2>&1"
