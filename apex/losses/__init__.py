"""Every loss term of the methods, as pure functions: tensors in, tensors out. One file per family; sources in the docstrings.

A `network` argument is a callable with its condition bound. Losses are per sample, shape (B,), a mean over the elements
of a sample, unless said otherwise.
"""

from apex.losses.adversarial import *  # noqa: F403
from apex.losses.consistency import *  # noqa: F403
from apex.losses.regression import *  # noqa: F403
from apex.losses.self_adversarial import *  # noqa: F403
