"""Makes what the embedded world bundles: codec, text encoder, teacher. See `snakemake pretrained`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apex import provenance


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """A command's settings for its record: all arguments but the paths."""
    return {key: value for key, value in vars(args).items() if not isinstance(value, Path)}


def origin(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and commit of what was made."""
    return {"hardware": provenance.hardware(device), "versions": provenance.versions(), "git_commit": provenance.git_commit()}
