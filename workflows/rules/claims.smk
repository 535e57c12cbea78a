# `snakemake theory`: what needs no world. `snakemake claims`: every claim of the paper with what the records that are there say of it.


# Closed forms, and gradients on the 2-D mixture: the same for every profile.
rule theory:
    output:
        "results/theory/theory.json",
        "results/theory/alignment.csv",
    log:
        "results/theory/theory.log",
    conda:
        ENVIRONMENT
    params:
        out=lambda wildcards, output: os.path.dirname(output[0]),
        code=[
            fingerprint(BASEDIR / "apex" / part)
            for part in (
                *("theory.py", "identities.py"),
                *("alignment.py", "kl_gradient.py"),
                *("mixture_rows.py", "mixture_runs.py"),
                *("methods", "losses"),
            )
        ],
    shell:
        "(python -m apex.theory --out {params.out:q} && python -m apex.alignment --out {params.out:q}) 2>&1 | tee {log:q}"


# The verdicts and the assumptions of this profile's results; part of `all`.
rule judge:
    input:
        PLAN.metrics,
    output:
        report(
            directory(PLAN.claims),
            patterns=["{name}.html", "{name}.png"],
            caption="../report/claims.rst",
            category="1. Claims and verdicts",
            labels={"page": "{name}"},
        ),
    log:
        f"{PLAN.root}/logs/judge.log",
    conda:
        ENVIRONMENT
    params:
        command=lambda wildcards: joined(claim_commands(PLAN.root)),
        code=fingerprint(BASEDIR / "paper_tables" / "claims.yaml"),
        expected=digest(CONFIG.as_profile()),
    shell:
        "({params.command}) > {log:q} 2>&1"


# Without inputs, as `tables`: it takes what is there and never trains.
rule claims:
    log:
        f"{PLAN.root}/logs/claims.log",
    conda:
        ENVIRONMENT
    params:
        command=lambda wildcards: joined(claim_commands(RECORDED)),
    shell:
        "({params.command}) 2>&1 | tee {log:q}"


OWN = recorded(PLAN.root) or not recorded(PLAN.reference)  # whether the report is of results of this folder


# One HTML file with everything that the profile's results show. The same by hand: snakemake all --report FILE. In a clone without records
# of this profile it shows the committed ones, and makes only tables, figures and claims for it.
rule report:
    input:
        [PLAN.claims, PLAN.tables, PLAN.audit, PLAN.figures] if OWN else [],
    output:
        f"{PLAN.root}/report.html",
    log:
        f"{PLAN.root}/logs/report.log",
    conda:
        ENVIRONMENT
    params:
        call=lambda wildcards: snakemake_arguments(),
        grids=[f"ablation_{grid}" for grid in GRIDS if Path(ABLATIONS.root, "tables", f"{grid}.png").is_file()],
        before=lambda wildcards: (
            "true" if OWN else joined([*table_commands(PLAN.reference), *claim_commands(PLAN.reference)])
        ),
    shell:
        "({params.before} && snakemake all {params.grids:q} --report {output:q} {params.call:q}) > {log:q} 2>&1"


report: os.path.abspath(f"{PLAN.claims}/front.rst")
