"""What a quantizer is: functions that turn real rows into integers and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Params = Any  # a quantizer's own pytree: codebooks, steps, offsets


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
