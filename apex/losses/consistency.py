"""Loss terms of the consistency methods. Times, signs and guidance as in `apex.flow`."""

from __future__ import annotations
