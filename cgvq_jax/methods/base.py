"""What a method is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from cgvq_jax.primitives.trees import Gaussians


class Telling(NamedTuple):
  """What a method tells in a file's integers, and how much work it may take."""

  key: PRNGKeyArray
  gaussians: Gaussians  # free ones, fitted
  target: Float[Array, 'H W C']
  num_clusters: int
  steps: int
  loss: Callable[[Any, Any], Any]
  resume: Callable[[Any], Any]  # the initial state -> the state to go on from
  on_block: Callable[[Any, Any], None]  # (state, fit.Progress)
