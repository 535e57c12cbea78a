# `snakemake plan`: what the profile's runs need, before anything is spent. On a card: `snakemake plan --config card=h100`.
# `snakemake measure`: a few steps of every row on this machine, with random weights, and the plan beside them.


rule plan:
    log:
        f"{PLAN.root}/logs/plan.log",
    conda:
        ENVIRONMENT
    params:
        about=config_arguments,
        card=["--card", CARD] if CARD else [],
        out=f"{PLAN.root}/plan",
    shell:
        "(python -m apex.estimate {params.about:q} {params.card:q} --out {params.out:q}"
        " && python -m paper_tables.plan --plan {params.out:q}) 2>&1 | tee {log:q}"


rule measure_row:
    output:
        f"{PLAN.root}/plan/measured/{{row}}.json",
    log:
        f"{PLAN.root}/logs/measure/{{row}}.log",
    wildcard_constraints:
        row=one_of(CONFIG.all_methods),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        identity=lambda wildcards: CONFIG.run_hash(wildcards.row, teacher=False),
    shell:
        "python -m apex.measure {params.config:q} --row {wildcards.row:q} --out {output:q} 2>&1 | tee {log:q}"


use rule plan as measure with:
    input:
        expand(rules.measure_row.output, row=CONFIG.methods),
    log:
        f"{PLAN.root}/logs/measure.log",
    params:
        about=config_arguments,
        card=["--card", CARD] if CARD else [],
        out=lambda wildcards, input: os.path.dirname(os.path.dirname(input[0])),
