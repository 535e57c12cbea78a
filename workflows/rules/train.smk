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
        sampling=lambda wildcards: CONFIG.sampling.model_dump_json(),
    shell:
        "{params.start:q} apex.train {params.config:q} --row {wildcards.row:q} --seed {wildcards.seed:q}"
        " --keep-diverged --cache {input.cache:q} {params.embeddings:q} --out {output:q} > {log:q} 2>&1"
