"""The kinds of folders that commands of this suite write as a whole, and what each holds: anything else in one is foreign. No torch."""

from __future__ import annotations

from apex.files import Kind

MADE = "made.json"
_WEIGHTS = ("*config.json", "*.safetensors")
_PIPELINE = ("vae", "tokenizer", "text_encoder", "transformer", "scheduler")

SHARDS = Kind("shards of apex.data.shards", ("shard-*.tar",), "index.json", "schema")
SYNTHESISED = Kind("images of apex.data.synthesise", ("shard-*.tar", "index.json"), MADE, "teacher")
CACHE = Kind("a cache of apex.data.cache", ("latents.safetensors", "captions.json"), MADE, "vae")
EMBEDDINGS = Kind("embeddings of apex.data.embeddings", ("captions-*.safetensors",), MADE, "files")
RUN = Kind(
    "an exported run of apex.train",
    ("sampling.json", "README.md", "log.csv", "target_time_embedder.safetensors", "transformer/*", "one_step/transformer/*", "lora/*"),
    MADE,
    "run_hash",
)
IMAGES = Kind("images of apex.sample", ("*/metadata.jsonl", "*/samples/*.png"), MADE, "prompts_sha256")
PAGES = Kind("pages of paper_tables", tuple(f"*.{end}" for end in ("md", "tex", "csv", "html", "png", "rst")))
CALIBRATION = Kind("a calibration of evaluators.geneval", ("calibration.json", "calibration.png"))
CODEC = Kind("a codec of apex.pretrain.codec", _WEIGHTS, MADE, "arguments")
TOKENIZER = Kind("a tokenizer of apex.pretrain.text_encoder", ("tokenizer.json", "*_config.json", "special_tokens_map.json"))
TEXT_ENCODER = Kind("a text encoder of apex.pretrain.text_encoder", _WEIGHTS, MADE, "arguments")
TEXT_PARTS = Kind("what apex.pretrain.text_encoder writes", (*TOKENIZER.holds, *_WEIGHTS, MADE))
FETCHED = Kind("what apex.fetch brought", ("*",), "fetched.json", "hub")
PIPELINE = Kind("a pipeline of apex.pretrain.teacher", tuple(f"{part}/*" for part in _PIPELINE), MADE, "arguments")
NETWORK = Kind("a network of evaluators.pretrain", ("*.json", "*.safetensors", "*.txt"), MADE, "held_out")
CONVERTED = Kind("what evaluators.geneval.convert writes", _WEIGHTS, MADE, "sha256")

# Rule of the workflow -> what its output folders are: Snakemake empties them before a job, so it looks before the first one.
OF_RULES = {
    **dict.fromkeys(("shards", "ablation_shards", "pretrain_shards"), SHARDS),
    **dict.fromkeys(("cache", "ablation_cache", "pretrain_cache"), CACHE),
    **dict.fromkeys(("embeddings", "ablation_embeddings"), EMBEDDINGS),
    **dict.fromkeys(("train", "tune_train", "ablation_train"), RUN),
    **dict.fromkeys(("sample", "sample_at", "sample_teacher", "sample_checkpoint", "sample_references"), IMAGES),
    **dict.fromkeys(("tune_score", "ablation_score"), IMAGES),
    **dict.fromkeys(("build_tables", "audit", "draw_figures", "write_cards", "judge"), PAGES),
    **dict.fromkeys(("fetch_pipeline", "fetch_checkpoint", "fetch_lora"), FETCHED),
    "synthesise": SYNTHESISED,
    "calibrate": CALIBRATION,
    "pretrain_codec": CODEC,
    "pretrain_text_encoder": TEXT_PARTS,
    "pretrain_teacher": PIPELINE,
    "pretrain_evaluator": NETWORK,
}
