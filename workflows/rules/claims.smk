# `snakemake theory`: what needs no world. `snakemake claims`: a verdict on every claim of the paper, from the records that are there.

THEORY = "results/theory"


# Closed forms, and gradients on the 2-D mixture: the same for every profile.
rule theory:
    output:
        f"{THEORY}/theory.json",
        f"{THEORY}/alignment.csv",
    log:
        f"{THEORY}/theory.log",
    conda:
        ENVIRONMENT
    params:
        out=lambda wildcards, output: os.path.dirname(output[0]),
        code=[
            fingerprint(BASEDIR / "apex" / part)
            for part in ("theory.py", "alignment.py", "mixture.py", "methods", "losses")
        ],
    shell:
        "(python -m apex.theory --out {params.out} && python -m apex.alignment --out {params.out}) 2>&1 | tee {log}"


# Without inputs, as `tables`: it takes what is there and never trains.
rule claims:
    log:
        f"{PLAN.root}/logs/claims.log",
    conda:
        ENVIRONMENT
    params:
        command=f"python -m paper_tables.claims {arguments(_file, overrides(_settings))} --results {RECORDED} --theory {kept('theory')}"
        f" --also workflows/config/world_qwen.yaml={kept('world_qwen')} --out {PLAN.root}/claims",
    shell:
        "{params.command} 2>&1 | tee {log}"
