# `snakemake ablations`, `snakemake ablation_table7`, ...: grids of settings around a row, a training run a cell, scored on the test
# prompts. Every cell has one seed; the best, the worst and the control cell of a grid have more, once the first are known.

GRIDS = list(ABLATIONS.found.grids)
SHOWN = {".html": "table", ".png": "figure", "_pictures.png": "pictures"}


use rule shards as ablation_shards with:
    output:
        directory(f"{CELL_DATA}/shards"),
    log:
        f"{PLAN.root}/logs/ablations/shards-{{data}}.log",
    wildcard_constraints:
        data="full|shapes",
    params:
        scenes=CONFIG.data.scenes,
        resolution=CONFIG.data.resolution,
        seed=CONFIG.data.seed,
        captions=lambda wildcards: wildcards.data,


use rule cache as ablation_cache with:
    input:
        data=cell_source,
        teacher=teacher_input,
    output:
        directory(f"{CELL_DATA}/cache"),
    log:
        f"{PLAN.root}/logs/ablations/cache-{{data}}.log",
    params:
        teacher=TEACHER,
        pipeline=lambda wildcards: str(CONFIG.pipeline_path),
        source=lambda wildcards, input: input.data or given_sources(wildcards)[0],
        resolution=CONFIG.data.resolution,
        skipping=skipping,


use rule embeddings as ablation_embeddings with:
    input:
        cache=f"{CELL_DATA}/cache",
        teacher=teacher_input,
    output:
        directory(CELL_EMBEDDINGS),
    log:
        f"{PLAN.root}/logs/ablations/embeddings-{{data}}-{{dtype}}.log",


use rule tune_train as ablation_train with:
    input:
        cache=cell_cache,
        embeddings=cell_embeddings,
        teacher=teacher_input,
    output:
        directory(f"{CELL}/run"),
    log:
        f"{PLAN.root}/logs/ablations/{{cell}}-seed{{seed}}.log",
    wildcard_constraints:
        cell=one_of(ABLATIONS.cells),
        seed=r"\d+",
    params:
        config=cell_arguments,
        identity=cell_identity,
        embeddings=embeddings_argument,
        start=start_command,
        row=CELL_ROW,
        seed=lambda wildcards: wildcards.seed,


use rule tune_score as ablation_score with:
    input:
        f"{CELL}/run",
    output:
        records=CELL_RECORDS,
        images=temp(directory(f"{CELL}/images")),
    log:
        f"{PLAN.root}/logs/ablations/{{cell}}-seed{{seed}}-score.log",
    wildcard_constraints:
        cell=one_of(ABLATIONS.cells),
        seed=r"\d+",
    params:
        config=cell_arguments,
        networks=EVALUATOR_NETWORKS,
        prompts=PROMPTS.get("test"),
        amount=lambda wildcards: CONFIG.prompts.model_dump_json(include={"images_per_prompt", "per_task"}),
        row=CELL_ROW,
        split="test",
        nfe=ABLATIONS.found.nfe,
        seed=lambda wildcards: wildcards.seed,
        records=lambda wildcards: CELL_RECORDS[0].format(**wildcards).replace(JUDGES[0], "{evaluator}"),
        scores=lambda wildcards: scores({"test": JUDGES}),


# Of a cell's images those that its grid's pictures show.
rule ablation_pictures:
    input:
        f"{CELL}/images",
    output:
        CELL_PICTURES,
    log:
        f"{PLAN.root}/logs/ablations/{{cell}}-seed{{seed}}-pictures.log",
    wildcard_constraints:
        cell=one_of(ABLATIONS.cells),
        seed=r"\d+",
    conda:
        ENVIRONMENT
    shell:
        "python -m paper_tables.pictures --images {input:q} --out {output:q} > {log:q} 2>&1"


# What the first seeds say: which cells are the best and the worst.
checkpoint ablation_ends:
    input:
        lambda wildcards: grid_records(wildcards.grid, ABLATIONS.names(wildcards.grid), ABLATIONS.found.seeds),
    output:
        f"{ABLATIONS.root}/ends/{{grid}}.json",
    log:
        f"{PLAN.root}/logs/ablations/{{grid}}-ends.log",
    wildcard_constraints:
        grid=one_of(GRIDS),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
    shell:
        "python -m paper_tables.ablations {params.config:q} --results {params.results:q} --grid {wildcards.grid:q} --ends {output:q} > {log:q} 2>&1"


rule ablation:
    input:
        f"{ABLATIONS.root}/ends/{{grid}}.json",
        again,
        lambda wildcards: expand(CELL_PICTURES, cell=ABLATIONS.names(wildcards.grid), seed=ABLATIONS.found.seeds[:1]),
    output:
        multiext(f"{ABLATIONS.root}/tables/{{grid}}", ".md", ".tex", ".csv"),
        [in_report(f"{ABLATIONS.root}/tables/{{grid}}{end}", what) for end, what in SHOWN.items()],
    log:
        f"{PLAN.root}/logs/ablations/{{grid}}.log",
    wildcard_constraints:
        grid=one_of(GRIDS),
    conda:
        ENVIRONMENT
    params:
        config=config_arguments,
        results=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
        out=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python -m paper_tables.ablations {params.config:q} --results {params.results:q} --grid {wildcards.grid:q} --out {params.out:q} 2>&1 | tee {log:q}"


for _grid in GRIDS:

    rule:
        name:
            f"ablation_{_grid}"
        input:
            f"{ABLATIONS.root}/tables/{_grid}.png",
        localrule: True


rule ablations:
    input:
        [f"{ABLATIONS.root}/tables/{grid}.png" for grid in GRIDS],
