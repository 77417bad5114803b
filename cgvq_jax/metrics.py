"""PSNR of decoded 8-bit images, and the rates of real files, in NumPy.

Images are compared as a viewer sees them: uint8 pixels after decoding, RGBA on black and on white.
`evaluate.similarity` has SSIM and MS-SSIM, which need JAX.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cgvq_jax import alpha

if TYPE_CHECKING:
  from jaxtyping import UInt8


def psnr(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """10 log10(255^2 / MSE) in dB, the mean over all pixels and channels; inf at equality.

  The channels of RGBA are six: those of its composites, round(alpha c / 255) on black and
  round(alpha c / 255 + 255 - alpha) on white. So no colour counts that cannot be seen.

  Raises:
    ValueError: the images are not two uint8 [H, W, C] arrays of one shape, C = 1, 3 or 4.
  """
  reference, decoded = seen(reference, decoded)
  difference = reference.astype(np.int16) - decoded
  mean_squared_error = np.mean(np.square(difference, dtype=np.int32))
  return 10 * math.log10(255**2 / mean_squared_error) if mean_squared_error else math.inf


def bpp(num_bytes: int, height: int, width: int) -> float:
  """Bits per pixel of a file, 8 bytes / (H W): the only definition of a rate in this project.

  Raises:
    ValueError: a size is below 1 px, or the number of bytes is negative.
  """
  if min(height, width) < 1 or num_bytes < 0:
    raise ValueError(
      f'wanted bytes >= 0 and sides >= 1 px, got {num_bytes} bytes of {height} x {width} px'
    )
  return 8 * num_bytes / (height * width)


def seen(reference, decoded) -> tuple[np.ndarray, np.ndarray]:
  """Both images as arrays, RGBA by `alpha.composites`; raises ValueError as `psnr`."""
  arrays = np.asarray(reference), np.asarray(decoded)
  for name, array in zip(('reference', 'decoded'), arrays, strict=True):
    wanted = array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.size > 0
    if not wanted or array.dtype != np.uint8:
      raise ValueError(
        f'{name}: wanted uint8 [H, W, C] with C = 1, 3 or 4, got {array.dtype} {array.shape}'
      )
  if arrays[0].shape != arrays[1].shape:
    raise ValueError(f'decoded: wanted the shape {arrays[0].shape}, got {arrays[1].shape}')
  if arrays[0].shape[2] < 4:
    return arrays
  return alpha.composites(arrays[0]), alpha.composites(arrays[1])
