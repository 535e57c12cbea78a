"""Evaluators: each reads a folder of images and writes one result record (`evaluators.result`)."""

import apex  # noqa: F401, a job ends with its workflow from the first import on
