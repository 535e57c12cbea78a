"""WISE: prompts that ask for knowledge, scored by a language model that sees the image (Niu et al. 2025, arXiv 2503.07265)."""
