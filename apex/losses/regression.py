"""Loss terms of the regression methods. Times, signs and guidance as in `apex.flow`."""

from __future__ import annotations
