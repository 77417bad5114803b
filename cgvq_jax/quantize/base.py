"""What quantizers and dequantizers are: functions from real rows to integers and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  import numpy as np
  from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Params = Any  # a quantizer's own NamedTuple: codebooks, steps, offsets


class Dequantizer(NamedTuple):
  """The decoder's half of a quantizer: NumPy only, float32.

  `restore` reads the tables that `Quantizer.tabulate` made, as arrays [K, ...]; it raises
  ValueError where tables and alphabets do not fit the quantizer or each other. `dequantize` takes
  the params of ONE cluster, without the K axis, and the symbols of its n members.
  """

  # (tables, alphabets) -> params
  restore: Callable[[dict[str, np.ndarray], tuple[int, ...]], Params]
  dequantize: Callable[[Params, Int[np.ndarray, 'n S']], Float[np.ndarray, 'n D']]


class Quantized(NamedTuple):
  """What a quantizer makes of the P rows of one cluster."""

  value: Float[Array, 'P D']  # the quantized rows; their gradient is straight-through
  symbols: Int[Array, 'P S']  # what the file holds for each row
  params: Params  # the quantizer's state after this step (moving averages); no gradient
  loss: Float[Array, '']  # commitment loss, mean over the cluster's members; 0 where there is none


class Quantizer(NamedTuple):
  """One way to quantize real rows, written for ONE cluster and vmapped over K.

  The functions take the padded rows of a cluster and their mask; padding never changes a result.
  `init` also takes, for each number of the rows, the step at which quantizing it adds as much
  squared error to the picture as quantizing any other number; a quantizer that has steps to choose
  may go by it. `tabulate` rounds the params of all K clusters to the integers that the file stores;
  `dequantizer.restore` reads them back, so that encoder and decoder dequantize with the very same
  numbers.
  """

  name: str  # names the dequantizer in the file
  alphabets: tuple[int, ...]  # number of values of each of the S symbol columns
  init: Callable[[PRNGKeyArray, Float[Array, 'P D'], Bool[Array, 'P'], Float[Array, 'P D']], Params]
  quantize: Callable[[Params, Float[Array, 'P D'], Bool[Array, 'P']], Quantized]
  tabulate: Callable[[Params], dict[str, np.ndarray]]  # [K, ...] uint8 or uint16 tables
  dequantizer: Dequantizer
