"""Evaluators: each reads a folder of images and writes one result record (`evaluators.result`)."""

import apex  # noqa: F401, a job ends with its workflow from the first import on

BATCH = 10  # images of a call for the throughput, as in the paper's Table 1
