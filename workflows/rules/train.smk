# One job per row and seed. What a killed job needs to go on lies beside the output, undeclared, so
# that Snakemake does not delete it: runs/<row>/.resume-seed<S>-<hash>/.


rule train:
    input:
        cache=PLAN.cache,
        embeddings=run_embeddings,
        teacher=teacher_input,
    output:
        directory(PLAN.run),
    log:
        f"{PLAN.root}/logs/train/{{row}}-seed{{seed}}.log",
    benchmark:
        f"{PLAN.root}/benchmarks/train/{{row}}-seed{{seed}}.tsv"
    wildcard_constraints:
        row=one_of(CONFIG.all_methods),
        seed=r"\d+",
    priority: 10  # the longest jobs first
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        identity=run_identity,
        embeddings=embeddings_argument,
        start=start_command,
        sampling=CONFIG.sampling.model_dump_json(),
    shell:
        "{params.start} apex.train {params.config} --row {wildcards.row} --seed {wildcards.seed}"
        " --keep-diverged --cache {input.cache} {params.embeddings} --out {output} 2>&1 | tee {log}"
