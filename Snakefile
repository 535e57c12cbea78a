# The workflow's table of contents. Run it inside the environment:
#
#     snakemake all                                        the default profile, workflows/config/world.yaml
#     snakemake all --config methods=apex,fm               some rows of it
#     snakemake all --config set='train.ema=0.5 nfe=1'     single keys, also inside others
#     snakemake all --configfile workflows/config/smoke.yaml
#     snakemake full                                       every method: the profile workflows/config/matrix.yaml, unless another is named
#     snakemake tune                                       every method's candidate settings, on the validation prompts
#     snakemake ablations                                  the profile's grids of settings; one of them: ablation_table7
#     snakemake theory                                     closed forms and gradients on the 2-D mixture
#     snakemake claims                                     every claim of the paper: a verdict from the records, or what would decide it
#     snakemake report                                     one HTML file with verdicts, tables, figures and where each number is from
#     snakemake tables                                     tables and figures again, from result records alone
#     snakemake plan --configfile ...                      memory, FLOPs and hours of a profile's runs, before anything is spent
#     snakemake measure --configfile ...                   a few steps of every row on this machine, with random weights, beside the plan
#     snakemake speed                                      the systems of Table 1 timed on this machine, with nothing to download
#     snakemake cards                                      model cards again, with what was measured of every run
#     snakemake synthesise                                 the training set that the profile's teacher draws (data.source: teacher)
#     snakemake -n                                         what there is to do
#
# The rules are in workflows/rules; each is a thin call of one command that also runs by hand.


include: "workflows/rules/common.smk"
include: "workflows/rules/data.smk"
include: "workflows/rules/train.smk"
include: "workflows/rules/sample.smk"
include: "workflows/rules/evaluate.smk"
include: "workflows/rules/tables.smk"
include: "workflows/rules/tune.smk"
include: "workflows/rules/ablations.smk"
include: "workflows/rules/claims.smk"
include: "workflows/rules/pretrained.smk"
include: "workflows/rules/plan.smk"
include: "workflows/rules/speed.smk"


localrules:
    all,
    ablations,
    tables,
    cards,
    figures,
    claims,
    report,
    reference,
    pretrained,
    fetch_checkpoints,
    bundle,
    adopt_tuning,
    plan,
    measure,
    speed,


rule all:
    default_target: True
    input:
        PLAN.records(),
        PLAN.metrics,
        PLAN.tables,
        PLAN.audit,
        PLAN.claims,
        PLAN.figures,
        PLAN.cards if CONFIG.methods else [],


rule pretrained:
    input:
        PRETRAINED,
