"""DPG-Bench: long prompts, judged by yes-or-no questions about each image (Hu et al. 2024, arXiv 2403.05135)."""

MPLUG = "damo/mplug_visual-question-answering_coco_large_en"  # the protocol's judge
JUDGES = ("mplug", "transformers-vlm", "transformers-vqa")  # the keys of `evaluators.dpg.judges.JUDGES`
