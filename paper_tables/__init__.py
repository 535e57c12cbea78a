"""From result records and published numbers to tables, figures and the audit. Nothing here imports torch."""

import apex  # noqa: F401, a job ends with its workflow from the first import on
