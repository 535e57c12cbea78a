"""Evaluators: each reads a folder of images and writes one result record (`evaluators.result`)."""
