# `snakemake plan`: what the profile's runs need, before anything is spent. On a card: `snakemake plan --config card=h100`.


rule plan:
    log:
        f"{PLAN.root}/logs/plan.log",
    conda:
        ENVIRONMENT
    params:
        about=arguments(_file, overrides(_settings)),
        card=f"--card {CARD}" if CARD else "",
        out=f"{PLAN.root}/plan",
    shell:
        "(python -m apex.estimate {params.about} {params.card} --out {params.out}"
        " && python -m paper_tables.plan --plan {params.out}) 2>&1 | tee {log}"
