"""From result records and published numbers to tables, figures and the audit. Nothing here imports torch."""
