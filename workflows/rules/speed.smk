# `snakemake speed`: the systems of Table 1 with random weights. On a GPU at their published sizes, else built small.
# Some of them: snakemake speed --config systems=flux-schnell,sana-0.6b


rule time_system:
    output:
        "results/speed/{system}/timed.txt",
    log:
        "results/speed/logs/{system}.log",
    wildcard_constraints:
        system=one_of(SYSTEMS),
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    params:
        out=lambda wildcards, output: os.path.dirname(output[0]),
        content=lambda wildcards: SYSTEMS[wildcards.system].content,
    shell:
        "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m evaluators.systems --system {wildcards.system:q}"
        " --out {params.out:q}/'{{resolution}}px/nfe{{nfe}}.json' 2> >(tee {log:q} >&2) > {output:q}"


rule speed:
    input:
        expand("results/speed/{system}/timed.txt", system=TIMED),
    log:
        "results/speed/logs/tables.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m paper_tables.systems --results results/speed --out results/speed/tables 2>&1 | tee {log:q}"
