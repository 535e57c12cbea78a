# `snakemake pretrained`: the teacher and the evaluators' networks from nothing, in results/pretrained/<profile>.
# The bundled copies in the packages are never an output; `snakemake bundle` replaces them on purpose.

P = PLAN.pretrained
SETTINGS = CONFIG.pretraining
PARTS = (
    str(locate(SETTINGS.parts)) if SETTINGS.parts else f"{P}/parts"
)  # with given parts the evaluators' networks are given too
GIVEN = given if SETTINGS.parts else str
PRETRAINED = [f"{P}/pipeline"]
if not SETTINGS.parts and not CONFIG.hub:
    PRETRAINED += [f"{P}/evaluators/{name}" for name in ("detector", "fid", "clip")]


rule pretrain_shards:
    output:
        directory(f"{P}/data/shards"),
    log:
        f"{P}/logs/shards.log",
    conda:
        ENVIRONMENT
    params:
        scenes=SETTINGS.scenes,
        resolution=CONFIG.data.resolution,
        seed=SETTINGS.seed,
    shell:
        "python -m apex.data.shards world --out {output:q} --scenes {params.scenes:q}"
        " --resolution {params.resolution:q} --seed {params.seed:q} > {log:q} 2>&1"


rule pretrain_codec:
    input:
        data=f"{P}/data/shards",
    output:
        directory(f"{P}/parts/vae"),
    log:
        f"{P}/logs/codec.log",
    conda:
        ENVIRONMENT
    params:
        steps=SETTINGS.codec_steps,
        decoder_steps=SETTINGS.decoder_steps,
        seed=SETTINGS.seed,
    shell:
        "python -m apex.pretrain.codec --data {input.data:q} --out {output:q} --steps {params.steps:q}"
        " --decoder-steps {params.decoder_steps:q} --seed {params.seed:q} > {log:q} 2>&1"


rule pretrain_text_encoder:
    output:
        directory(f"{P}/parts/text_encoder"),
        directory(f"{P}/parts/tokenizer"),
    log:
        f"{P}/logs/text_encoder.log",
    conda:
        ENVIRONMENT
    params:
        steps=SETTINGS.text_encoder_steps,
        seed=SETTINGS.seed,
        out=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python -m apex.pretrain.text_encoder --out {params.out:q} --steps {params.steps:q} --seed {params.seed:q} > {log:q} 2>&1"


rule pretrain_cache:
    input:
        data=f"{P}/data/shards",
        codec=GIVEN(f"{PARTS}/vae"),
    output:
        directory(f"{P}/data/cache"),
    log:
        f"{P}/logs/cache.log",
    conda:
        ENVIRONMENT
    params:
        parts=lambda wildcards, input: PARTS,
    shell:
        "python -m apex.data.cache --pipeline {params.parts:q} --data {input.data:q} --out {output:q} > {log:q} 2>&1"


# A profile with a `hub` has its pipeline from there.
if CONFIG.hub:

    rule fetch_pipeline:
        output:
            directory(f"{P}/pipeline"),
        log:
            f"{P}/logs/fetch.log",
        conda:
            ENVIRONMENT
        params:
            hub=CONFIG.hub,
        shell:
            "python -m apex.fetch --hub {params.hub:q} --out {output:q} 2>&1 | tee {log:q}"

else:

    rule pretrain_teacher:
        input:
            [GIVEN(f"{PARTS}/{part}") for part in ("vae", "text_encoder", "tokenizer")],
            cache=f"{P}/data/cache",
        output:
            directory(f"{P}/pipeline"),
        log:
            f"{P}/logs/teacher.log",
        priority: 10
        conda:
            ENVIRONMENT
        params:
            parts=lambda wildcards, input: PARTS,
            steps=SETTINGS.teacher_steps,
            batch=SETTINGS.batch_size,
            family=SETTINGS.family,
            width=SETTINGS.width,
            layers=SETTINGS.layers,
            seed=SETTINGS.seed,
        shell:
            "python -m apex.pretrain.teacher --pipeline {params.parts:q} --cache {input.cache:q} --out {output:q}"
            " --steps {params.steps:q} --batch {params.batch:q} --family {params.family:q} --width {params.width:q} --layers {params.layers:q}"
            " --seed {params.seed:q} > {log:q} 2>&1"


rule fetch_checkpoint:
    output:
        directory(f"{FETCHED}/pipeline"),
    log:
        "results/pretrained/checkpoints/logs/{row}.log",
    wildcard_constraints:
        row=one_of([name for name, one in CONFIG.checkpoint_rows.items() if one.hub]),
    conda:
        ENVIRONMENT
    params:
        hub=lambda wildcards: CONFIG.checkpoint_rows[wildcards.row].hub,
    shell:
        "python -m apex.fetch --whole --hub {params.hub:q} --out {output:q} 2>&1 | tee {log:q}"


rule fetch_lora:
    output:
        directory(f"{FETCHED}/lora"),
    log:
        "results/pretrained/checkpoints/logs/{row}-lora.log",
    wildcard_constraints:
        row=one_of([name for name, one in CONFIG.checkpoint_rows.items() if one.lora_hub]),
    conda:
        ENVIRONMENT
    params:
        hub=lambda wildcards: CONFIG.checkpoint_rows[wildcards.row].lora_hub,
        file=lambda wildcards: CONFIG.checkpoint_rows[wildcards.row].lora_file,
    shell:
        "python -m apex.fetch --hub {params.hub:q} --file {params.file:q} --out {output:q} 2>&1 | tee {log:q}"


# Everything that the profile's checkpoints need, where there is a network.
rule fetch_checkpoints:
    input:
        [folder for row in CONFIG.checkpoint_rows for folder in checkpoint_folders(row)],


rule pretrain_evaluator:
    output:
        directory(f"{P}/evaluators/{{network}}"),
    log:
        f"{P}/logs/{{network}}.log",
    wildcard_constraints:
        network="detector|fid|clip",
    conda:
        ENVIRONMENT
    params:
        steps=f" --steps {SETTINGS.evaluator_steps}" if SETTINGS.evaluator_steps else "",
    shell:
        "python -m evaluators.pretrain {wildcards.network:q} --out {output:q}{params.steps} > {log:q} 2>&1"


# On purpose only: what was made becomes what is bundled.
rule bundle:
    input:
        pipeline=PRETRAINED[0],
        evaluators=PRETRAINED[1:],
    log:
        f"{P}/logs/bundle.log",
    conda:
        ENVIRONMENT
    params:
        pipeline=f"apex/pretrained/{CONFIG.profile}",
        evaluators=f"evaluators/pretrained/{CONFIG.profile}",
    shell:
        "(mkdir -p {params.pipeline:q} {params.evaluators:q}"
        " && cp -rT {input.pipeline:q} {params.pipeline:q}"
        ' && for network in {input.evaluators:q}; do cp -r "$network" {params.evaluators:q}/; done) 2>&1 | tee {log:q}'
