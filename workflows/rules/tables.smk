# From result records to metrics.csv, tables and figures. Nothing here imports torch.

# What `snakemake tables` reads: this profile's own records, or the committed reference's where there are none.
RECORDED = PLAN.root if recorded(PLAN.root) else PLAN.reference


rule collect:
    input:
        PLAN.records(),
    output:
        PLAN.metrics,
    log:
        f"{PLAN.root}/logs/collect.log",
    conda:
        ENVIRONMENT
    params:
        results=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python -m paper_tables.collect --results {params.results:q} --out {output:q} > {log:q} 2>&1"


rule build_tables:
    input:
        PLAN.metrics,
    output:
        report(
            directory(PLAN.tables),
            patterns=["{name}.html"],
            caption="../report/tables.rst",
            category="2. Tables",
            labels={"table": "{name}"},
        ),
    log:
        f"{PLAN.root}/logs/tables.log",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(output[0]),
        expected=digest(CONFIG.as_profile()),
        committed=beside(PLAN.root),
    shell:
        "python -m paper_tables.build --results {params.results:q} --out {output:q} {params.config:q} {params.committed:q} > {log:q} 2>&1"


rule audit:
    output:
        report(
            directory(PLAN.audit),
            patterns=["{name}.html"],
            caption="../report/audit.rst",
            category="4. Audit of the paper's tables",
            labels={"audit": "{name}"},
        ),
    log:
        f"{PLAN.root}/logs/audit.log",
    conda:
        ENVIRONMENT
    params:
        published=[fingerprint(BASEDIR / "paper_tables" / name) for name in ("published", "text_claims.yaml")],
    shell:
        "python -m paper_tables.audit --out {output:q} > {log:q} 2>&1"


rule draw_figures:
    input:
        PLAN.metrics,
        PLAN.calibrated(),
    output:
        figures=report(
            directory(PLAN.figures),
            patterns=["{name,(?!grid|sweep_).*}.png"],  # those stand in the gallery
            caption="../report/figures.rst",
            category="3. Figures",
            labels={"figure": "{name}"},
        ),
        gallery=report(
            PLAN.gallery,
            caption="../report/pictures.rst",
            category="3. Figures",
            labels={"figure": "all picture grids"},
        ),
    log:
        f"{PLAN.root}/logs/figures.log",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(output[0]),
        expected=digest(CONFIG.as_profile()),
        committed=beside(PLAN.root),
    shell:
        "python -m paper_tables.figures --results {params.results:q} --out {output.figures:q} --gallery {output.gallery:q} {params.config:q}"
        " {params.committed:q} > {log:q} 2>&1"


# A model card for every run, with what was measured of it; part of `all`.
rule write_cards:
    input:
        PLAN.metrics,
    output:
        directory(PLAN.cards),
    log:
        f"{PLAN.root}/logs/cards.log",
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(output[0]),
        expected=digest(CONFIG.as_profile()),
    shell:
        "python -m paper_tables.cards --results {params.results:q} --out {output:q} {params.config:q} > {log:q} 2>&1"


# Targets without inputs: they take the records that are there and never train.
rule tables:
    log:
        f"{PLAN.root}/logs/tables.log",
    conda:
        ENVIRONMENT
    params:
        commands=lambda wildcards: joined(table_commands(RECORDED)),
    shell:
        "({params.commands}) 2>&1 | tee {log:q}"


rule figures:
    log:
        f"{PLAN.root}/logs/figures.log",
    conda:
        ENVIRONMENT
    params:
        command=lambda wildcards: joined(table_commands(RECORDED)[-1:]),
    shell:
        "{params.command} 2>&1 | tee {log:q}"


rule cards:
    log:
        f"{PLAN.root}/logs/cards.log",
    conda:
        ENVIRONMENT
    params:
        command=lambda wildcards: joined([cards_command(RECORDED)]),
    shell:
        "{params.command} 2>&1 | tee {log:q}"


# The whole matrix: more rows, seeds and NFEs (the profile's `full`), in the same folder of results, then tables and figures of all.
rule full:
    input:
        PLAN.records(full=True),
        PLAN.calibrated(),
    log:
        f"{PLAN.root}/logs/full.log",
    conda:
        ENVIRONMENT
    params:
        commands=lambda wildcards: joined(
            [*table_commands(PLAN.root), *([cards_command(PLAN.root)] if CONFIG.all_methods else [])]
        ),
    shell:
        "({params.commands}) 2>&1 | tee {log:q}"


# On purpose only: the small files of what there is of this profile's results join the committed reference.
rule reference:
    log:
        f"{PLAN.root}/logs/reference.log",
    conda:
        ENVIRONMENT
    params:
        commands=lambda wildcards: joined(reference_commands()),
    shell:
        "({params.commands}) 2>&1 | tee {log:q}"
