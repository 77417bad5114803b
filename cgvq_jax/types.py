"""The values that flow through the codec: frozen pytrees, every field with its shape and unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Params = Any  # a quantizer's own pytree: codebooks, steps, offsets


@struct.dataclass
class Gaussians:
  """N Gaussians of one image, in pixels; origin at the top-left corner, x right, y down.

  The covariance is R(rotation) diag(exp(2 log_scale)) R(rotation)^T. There is no opacity and no
  background; the order of the Gaussians does not matter.
  """

  mean_xy: Float[Array, 'N 2']  # px
  log_scale: Float[Array, 'N 2']  # standard deviations along the two axes, log px
  rotation: Float[Array, 'N']  # radians, first axis against x
  color: Float[Array, 'N C']  # additive, may be negative, not clipped

  @property
  def num_gaussians(self) -> int:
    return self.mean_xy.shape[-2]

  @property
  def num_channels(self) -> int:
    return self.color.shape[-1]


@struct.dataclass
class Clusters:
  """N members in K clusters, laid out as [K, P] rows padded to the largest cluster.

  `members[k, :counts[k]]` are the members of cluster k in ascending order. `slot[i]` is where
  member i stands in the flattened [K * P] layout, so the two are inverses and neither direction
  needs a scatter.
  """

  members: Int[Array, 'K P']  # 0..N-1; padding repeats 0
  mask: Bool[Array, 'K P']  # False on padding
  counts: Int[Array, 'K']
  slot: Int[Array, 'N']  # 0..K*P-1

  @property
  def num_clusters(self) -> int:
    return self.members.shape[0]


class Quantized(NamedTuple):
  """What a quantizer makes of the P rows of one cluster."""

  value: Float[Array, 'P D']  # the rounded rows; their gradient is straight-through
  symbols: Int[Array, 'P S']  # what the file holds for each row
  params: Params  # the quantizer's state after this step (moving averages); no gradient
  loss: Float[Array, '']  # commitment loss, mean over the cluster's members; 0 where there is none


class Quantizer(NamedTuple):
  """One way to turn real rows into integers, written for ONE cluster and vmapped over K.

  The functions take the padded rows of a cluster and their mask; padding never changes a result.
  `init` also takes, for each number of the rows, the step at which rounding it costs the picture as
  much as rounding any other number does; a quantizer that has steps to choose may go by it.
  `tabulate` rounds the params of all K clusters to the integers that the file stores and
  `restore` reads them back, so that encoder and decoder dequantize with the very same numbers; it
  raises ValueError where a file's tables and alphabets do not fit the quantizer or each other.
  """

  name: str  # names the dequantizer in the file
  alphabets: tuple[int, ...]  # number of values of each of the S symbol columns
  init: Callable[[PRNGKeyArray, Float[Array, 'P D'], Bool[Array, 'P'], Float[Array, 'P D']], Params]
  quantize: Callable[[Params, Float[Array, 'P D'], Bool[Array, 'P']], Quantized]
  dequantize: Callable[[Params, Int[Array, 'P S']], Float[Array, 'P D']]
  tabulate: Callable[[Params], dict[str, np.ndarray]]  # [K, ...] uint8 or uint16 tables
  # (tables, alphabets) -> params: the inverse, in float32
  restore: Callable[[dict[str, np.ndarray], tuple[int, ...]], Params]


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


class Stream(NamedTuple):
  """One attribute as integers: what the file holds of it."""

  quantizer: str  # Quantizer.name
  alphabets: tuple[int, ...]  # Quantizer.alphabets
  tables: dict[str, np.ndarray]  # Quantizer.tabulate: [K, ...], uint8 or uint16
  symbols: np.ndarray  # [N, S] int32, cluster by cluster


class Symbols(NamedTuple):
  """One encoded image as integers; the file is a lossless coding of exactly this."""

  height: int  # px
  width: int  # px
  channels: int  # 1, 3 or 4
  method: str  # Method.name
  counts: np.ndarray  # [K] int32, Gaussians of each cluster; sum is N
  position: Stream
  rotation_scale: Stream
  color: Stream
