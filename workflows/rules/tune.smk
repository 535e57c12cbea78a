# `snakemake tune`: the same tuning effort for every method. A few declared settings each, at a share of the budget, one seed,
# judged by GenEval on the validation prompts; the test prompts are not looked at. `snakemake adopt_tuning` makes its choice the profile's.

TUNING = CONFIG.tuning
CANDIDATES = PLAN.candidates()
TUNE_IMAGES = f"{PLAN.candidate}/images"
TUNE_RECORDS = [f"{PLAN.candidate}/records/{name}.json" for name in JUDGES]


rule tune_train:
    input:
        cache=PLAN.cache,
        embeddings=candidate_embeddings,
        teacher=teacher_input,
    output:
        directory(f"{PLAN.candidate}/run"),
    log:
        f"{PLAN.root}/logs/tune/{{method}}-{{k}}.log",
    wildcard_constraints:
        method=one_of(TUNING.candidates),
        k=r"\d+",
    priority: 10
    conda:
        ENVIRONMENT
    params:
        config=candidate_arguments,
        identity=candidate_identity,
        embeddings=embeddings_argument,
        start=start_command,
        row="candidate",
        seed=CONFIG.seeds[0],
    shell:
        "{params.start:q} apex.train {params.config:q} --row {params.row:q} --seed {params.seed:q} --keep-diverged"
        " --cache {input.cache:q} {params.embeddings:q} --out {output:q} > {log:q} 2>&1"


rule tune_score:
    input:
        f"{PLAN.candidate}/run",
    output:
        records=TUNE_RECORDS,
        images=temp(directory(TUNE_IMAGES)),
    log:
        f"{PLAN.root}/logs/tune/{{method}}-{{k}}-score.log",
    wildcard_constraints:
        method=one_of(TUNING.candidates),
        k=r"\d+",
    conda:
        ENVIRONMENT
    params:
        config=candidate_arguments,
        networks=EVALUATOR_NETWORKS,
        prompts=fingerprint(CONFIG.prompts_path("val")),
        amount=lambda wildcards: CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task"}),
        row="candidate",
        split="val",
        nfe=TUNING.nfe,
        seed=CONFIG.seeds[0],
        records=lambda wildcards: f"{PLAN.candidate}/records/{{evaluator}}.json".format(
            **wildcards, evaluator="{evaluator}"
        ),
        scores=lambda wildcards: scores({"val": JUDGES}),
    shell:
        "(python -m apex.sample {params.config:q} --row {params.row:q} --run {input:q} --nfe {params.nfe:q}"
        " --seed {params.seed:q} --split {params.split:q} --out {output.images:q} --keep-failed && python -m evaluators --images {output.images:q}"
        " --out {params.records:q} --score {params.scores}) > {log:q} 2>&1"


rule tune:
    input:
        [path.format(method=method, k=k) for method, k in CANDIDATES for path in TUNE_RECORDS],
    output:
        f"{PLAN.root}/tune/tuning.json",
        f"{PLAN.root}/tune/tuned.yaml",
    log:
        f"{PLAN.root}/logs/tune.log",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "(python -m workflows.tune {params.config:q} --results {params.results:q}"
        " && python -m paper_tables.tuning --results {params.results:q} --out {params.results:q}) 2>&1 | tee {log:q}"


# On purpose only: the choice becomes the profile's settings, its records the committed reference.
rule adopt_tuning:
    input:
        f"{PLAN.root}/tune/tuning.json",
    log:
        f"{PLAN.root}/logs/adopt_tuning.log",
    conda:
        ENVIRONMENT
    params:
        results=lambda wildcards, input: os.path.dirname(input[0]),
        tuned=lambda wildcards: CONFIG.tuned or f"workflows/config/tuned/{CONFIG.profile}.yaml",
        reference=f"{PLAN.reference}/tune",
    shell:
        "python -m workflows.tune --adopt --results {params.results:q} --tuned {params.tuned:q} --reference {params.reference:q} 2>&1 | tee {log:q}"
