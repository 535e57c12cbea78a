"""DPG-Bench: long prompts, judged by yes-or-no questions about each image (Hu et al. 2024, arXiv 2403.05135)."""
