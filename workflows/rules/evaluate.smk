# One result record per point, prompt set and evaluator.

IMAGE_EVALUATORS = [name for name in CONFIG.evaluators if name != "speed"]
EVALUATOR_NETWORKS = fingerprint(BASEDIR / "evaluators" / "pretrained")


rule evaluate:
    input:
        images=PLAN.images,
    output:
        PLAN.record,
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}-{{split}}-{{evaluator}}.log",
    wildcard_constraints:
        row=one_of(["teacher", *CONFIG.references, *CONFIG.methods]),
        nfe=r"\d+",
        seed=r"\d+",
        split=one_of(CONFIG.splits),
        evaluator=one_of(IMAGE_EVALUATORS),
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
    shell:
        "python -m evaluators.{wildcards.evaluator} --images {input.images} --out {output} > {log} 2>&1"


rule evaluate_external:
    output:
        PLAN.record,
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}-{{split}}-{{evaluator}}.log",
    wildcard_constraints:
        row=one_of(PLAN.externals),
        nfe=r"\d+",
        seed=r"\d+",
        split="test",
        evaluator=one_of(IMAGE_EVALUATORS),
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
        images=lambda wildcards: PLAN.externals[wildcards.row].images,
        content=lambda wildcards: fingerprint(Path(PLAN.externals[wildcards.row].images)),
    shell:
        "python -m evaluators.{wildcards.evaluator} --images {params.images} --row {wildcards.row}"
        " --nfe {wildcards.nfe} --out {output} > {log} 2>&1"


rule speed:
    input:
        timed_input,
    output:
        PLAN.record.replace("{evaluator}", "speed"),
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}-{{split}}-speed.log",
    wildcard_constraints:
        row=one_of(["teacher", *CONFIG.methods]),
        nfe=r"\d+",
        seed=r"\d+",
        split=one_of(CONFIG.splits),
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1  # all of them: nothing else runs while the clock does
    params:
        config=config_arguments,
        sampling=CONFIG.sampling.model_dump_json(),
        guidance=CONFIG.guidance,
        run=lambda wildcards: str(CONFIG.pipeline_path) if wildcards.row == "teacher" else PLAN.run.format(**wildcards),
    shell:
        "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m evaluators.speed {params.config} --row {wildcards.row}"
        " --run {params.run} --nfe {wildcards.nfe} --out {output} > {log} 2>&1"
