"""Makes what the embedded world bundles: codec, text encoder, teacher. See `snakemake pretrained`."""
