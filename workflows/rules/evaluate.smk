# One result record per point, prompt set and evaluator. The world's evaluators share one job per row: their libraries take longer to load
# than to run. An evaluator with settings of its own has a job per point.

EVALUATOR_NETWORKS = fingerprint(BASEDIR / "evaluators" / "pretrained")
SCORED, ALONE = PLAN.scored(), PLAN.alone()
TOGETHER = {
    split: together for split, names in SCORED.items() if (together := [name for name in names if name not in ALONE])
}
IN_TEST = {split: names for split, names in SCORED.items() if split == "test"}


# What the evaluators measure on fresh renders of the prompts: the same for every row.
rule references:
    output:
        [PLAN.references.format(split=s, evaluator=e) for s, names in PLAN.of_renders().items() for e in names],
    log:
        f"{PLAN.root}/logs/references.log",
    priority: 20
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        networks=EVALUATOR_NETWORKS,
        prompts=PROMPTS,
        amount=lambda wildcards: AMOUNT,
        resolution=CONFIG.data.resolution,
        out=lambda wildcards: PLAN.references,
        chosen=[f"{split}={','.join(names)}" for split, names in PLAN.of_renders().items()],
    shell:
        "python -m evaluators.references {params.config:q} --score {params.chosen:q} --out {params.out:q} > {log:q} 2>&1"


# `chosen` is stored and `scores` is not, because it is a function of `output`: an evaluator that gets settings of its own leaves the others'
# records.
for _group in PLAN.drawn():

    rule:
        name:
            f"evaluate{_group.suffix}"
        input:
            _group.paths(PLAN.images, SCORED),
            ancient(rules.references.output if PLAN.of_renders() else []),
        output:
            [
                path.replace("{evaluator}", e)
                for s, names in TOGETHER.items()
                for e in names
                for path in _group.paths(PLAN.record, [s])
            ],
        log:
            f"{PLAN.root}/logs/evaluate/{_group.stem}.log",
        wildcard_constraints:
            **_group.constraints,
        conda:
            ENVIRONMENT
        params:
            networks=EVALUATOR_NETWORKS,
            each=lambda wildcards, group=_group: [
                f"{name}={','.join(values)}" for name, values in zip(("row", "nfe"), group.named(wildcards))
            ],
            images=lambda wildcards: left_open(PLAN.images, wildcards),
            records=lambda wildcards: left_open(PLAN.record, wildcards),
            chosen=words(SCORED),
            scores=lambda wildcards, output: scores(TOGETHER),
            references=lambda wildcards, output: ["--references", PLAN.references] if PLAN.of_renders() else [],
        shell:
            "python -m evaluators --each {params.each:q} --images {params.images:q} --out {params.records:q} {params.references:q}"
            " --score {params.scores} > {log:q} 2>&1"


rule evaluate_alone:
    input:
        PLAN.images,
    output:
        PLAN.record,
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}-{{split}}-{{evaluator}}.log",
    wildcard_constraints:
        row=one_of(["teacher", *CONFIG.references, *CONFIG.all_methods, *CONFIG.checkpoint_rows]),
        nfe=r"\d+",
        seed=r"\d+",
        split=one_of(SCORED),
        evaluator=one_of(ALONE),
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
        content=lambda wildcards: PLAN.content(wildcards.evaluator),
        scores=lambda wildcards: scores({wildcards.split: [wildcards.evaluator]}),
    shell:
        "python -m evaluators --images {input:q} --out {output:q} --score {params.scores} > {log:q} 2>&1"


# An external folder holds the test prompts.
rule evaluate_external:
    output:
        [PLAN.record.replace("{split}", "test").replace("{evaluator}", e) for e in TOGETHER.get("test", [])],
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}.log",
    wildcard_constraints:
        row=one_of(PLAN.externals),
        nfe=r"\d+",
        seed=r"\d+",
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
        images=lambda wildcards: PLAN.externals[wildcards.row].images,
        content=lambda wildcards: fingerprint(Path(PLAN.externals[wildcards.row].images)),
        records=lambda wildcards: left_open(PLAN.record, wildcards),
        source=lambda wildcards: PLAN.externals[wildcards.row].source,
        chosen=words(IN_TEST),
        scores=lambda wildcards, output: scores({"test": TOGETHER["test"]}),
    shell:
        "python -m evaluators --images {params.images:q} --out {params.records:q} --score {params.scores}"
        " -- --row {wildcards.row:q} --nfe {wildcards.nfe:q} --source={params.source:q} > {log:q} 2>&1"


rule evaluate_external_alone:
    output:
        PLAN.record.replace("{split}", "test"),
    log:
        f"{PLAN.root}/logs/evaluate/{{row}}-nfe{{nfe}}-seed{{seed}}-test-{{evaluator}}.log",
    wildcard_constraints:
        row=one_of(PLAN.externals),
        nfe=r"\d+",
        seed=r"\d+",
        evaluator=one_of(ALONE),
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
        images=lambda wildcards: PLAN.externals[wildcards.row].images,
        content=lambda wildcards: [
            fingerprint(Path(PLAN.externals[wildcards.row].images)),
            *PLAN.content(wildcards.evaluator),
        ],
        source=lambda wildcards: PLAN.externals[wildcards.row].source,
        scores=lambda wildcards: scores({"test": [wildcards.evaluator]}),
    shell:
        "python -m evaluators --images {params.images:q} --out {output:q} --score {params.scores}"
        " -- --row {wildcards.row:q} --nfe {wildcards.nfe:q} --source={params.source:q} > {log:q} 2>&1"


# How GenEval falls when real renders are spoiled: what a score below 1 means.
rule calibrate:
    output:
        directory(PLAN.calibration),
    log:
        f"{PLAN.root}/logs/calibrate.log",
    conda:
        ENVIRONMENT
    params:
        networks=EVALUATOR_NETWORKS,
        prompts=lambda wildcards: str(CONFIG.prompts_path("test")),
        content=fingerprint(CONFIG.prompts_path("test")),
        resolution=CONFIG.data.resolution,
    shell:
        "python -m evaluators.geneval.calibrate --out {output:q} --prompts {params.prompts:q} --resolution {params.resolution:q} > {log:q} 2>&1"


# A network is timed while nothing else runs.
for _group in PLAN.networks():

    rule:
        name:
            f"time{_group.suffix}"
        input:
            lambda wildcards, group=_group: network_input(wildcards, group),
        output:
            [path.replace("{evaluator}", "speed") for path in _group.paths(PLAN.record)],
        log:
            f"{PLAN.root}/logs/evaluate/{_group.stem}-{{split}}-speed.log",
        wildcard_constraints:
            **_group.constraints,
            split=one_of(CONFIG.splits),
        conda:
            ENVIRONMENT
        threads: workflow.cores or 1
        params:
            config=config_arguments,
            point=lambda wildcards, group=_group: point_words(wildcards, group),
            content=lambda wildcards, group=_group: network_content(wildcards, group),
            sampling=lambda wildcards: CONFIG.sampling.model_dump_json(),
            guidance=CONFIG.guidance,
            records=lambda wildcards, group=_group: left_open(
                PLAN.record.replace("{evaluator}", "speed"), wildcards, group
            ),
        shell:
            "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m evaluators.speed {params.config:q} {params.point:q} --out {params.records:q}"
            " > {log:q} 2>&1"
