"""Checks of what the public functions are given: the argument, what was wanted, what was got.

A TypeError is about a thing of another kind, a ValueError about one that is out of range. Where
there is a usual way from the one to the other, the message ends with it.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from cgvq_jax.rasterize.limits import CHANNELS, MAX_SIDE

if TYPE_CHECKING:
  from jaxtyping import Float

_FULL_SCALE = {'uint8': 255, 'uint16': 65535}


def checked_image(image: Any) -> Float[np.ndarray, 'H W C']:
  """An image in 0..1, an array of floating-point numbers of any size and kind, as float32.

  Raises TypeError where it is no array, ValueError where it is none of an image.
  """
  if not (hasattr(image, 'shape') and hasattr(image, 'dtype')):
    if isinstance(image, str | os.PathLike):
      hint = 'cg.images.load(path).pixels'
    elif hasattr(image, 'pixels'):  # of cg.images.load
      hint = 'take its .pixels'
    elif hasattr(image, 'getbands'):  # Pillow's
      hint = 'np.asarray(image) / 255'
    else:
      hint = 'np.asarray(image) of such values'
    wanted = 'an array [H, W, C] of floating-point values in 0..1'
    raise TypeError(f'image: wanted {wanted}, got {_kind(image)}: {hint}')
  array = np.asarray(image)
  if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
    scale = _FULL_SCALE.get(array.dtype.name)
    hint = f': divide by {scale}' if scale else ''
    raise ValueError(f'image: wanted floating-point values in 0..1, got {array.dtype}{hint}')
  _check_shape(array.shape)
  values = array.astype(np.float32, copy=False)
  low, high = values.min(), values.max()
  if not 0 <= low <= high <= 1:  # NaN is neither
    hint = ': divide by 255' if 2 < high <= 255 and low >= 0 else ''
    raise ValueError(f'image: wanted finite values in 0..1, got {low:.6g} to {high:.6g}{hint}')
  return values


def _check_shape(shape: tuple[int, ...]) -> None:
  if len(shape) == 2:
    raise ValueError(
      f'image: wanted shape [H, W, C], got {shape}: add the axis of the channel, image[..., None]'
    )
  if len(shape) != 3 or not all(1 <= side <= MAX_SIDE for side in shape[:2]):
    raise ValueError(f'image: wanted shape [H, W, C] with sides of 1 to {MAX_SIDE} px, got {shape}')
  if shape[2] not in CHANNELS:
    hint = ': move the channels to the end, image.transpose(1, 2, 0)'
    raise ValueError(
      f'image: wanted shape [H, W, C] with {", ".join(map(str, CHANNELS[:-1]))} or {CHANNELS[-1]}'
      f' channels, got {shape}{hint if shape[0] in CHANNELS else ""}'
    )


def check_method(method: Any, channels: int) -> None:
  """That it is a `Method` and takes so many channels.

  Raises TypeError where it is no method; ValueError as its `check`.
  """
  wanted = f'method: wanted a method such as cg.methods.cgvq_rd(channels={channels})'
  if isinstance(method, str):
    raise TypeError(f'{wanted}, got a name: cg.methods.make({method!r}, {channels})')
  if isinstance(method, type) or (callable(method) and not hasattr(method, 'stages')):
    name = getattr(method, '__name__', _kind(method))
    raise TypeError(f'{wanted}, got the function {name}: call it, {name}(channels={channels})')
  if not (hasattr(method, 'name') and hasattr(method, 'check') and hasattr(method, 'stages')):
    raise TypeError(f'{wanted}, got {_kind(method)}')
  method.check(channels)


def check_hooks(hooks: Any) -> None:
  """That both of `Hooks` are functions. Raises TypeError."""
  if not (hasattr(hooks, 'resume') and hasattr(hooks, 'on_block')):
    raise TypeError(f'hooks: wanted cg.Hooks(resume=..., on_block=...), got {_kind(hooks)}')
  for name in ('resume', 'on_block'):
    if not callable(function := getattr(hooks, name)):
      raise TypeError(f'hooks: wanted a function {name}, got {_kind(function)}')


def checked_bytes(data: Any) -> bytes:
  """Bytes, or whatever has the buffer protocol, as bytes. Raises TypeError."""
  if isinstance(data, bytes):
    return data
  try:
    return bytes(memoryview(data))
  except TypeError:
    is_path = isinstance(data, str | os.PathLike)
    hint = ': Path(path).read_bytes()' if is_path else ''
    raise TypeError(f'data: wanted the bytes of a file, got {_kind(data)}{hint}') from None


def check_number(name: str, value: Any, low: int, high: int | None = None) -> None:
  """That a number is whole, also of NumPy, and in a range. Raises ValueError."""
  try:
    number = operator.index(value)
  except TypeError:
    number = None
  if number is None or isinstance(value, bool):
    raise ValueError(f'{name}: wanted a whole number, got {value!r}')
  if number < low or (high is not None and number > high):
    wanted = f'{low} or more' if high is None else f'{low} to {high}'
    raise ValueError(f'{name}: wanted {wanted}, got {number}')


def check_real(name: str, value: Any, low: float, high: float) -> None:
  """That a number, also of NumPy, is in a range. Raises ValueError."""
  if not _is_real(value) or not low <= value <= high:
    raise ValueError(f'{name}: wanted {low:g} to {high:g}, got {value!r}')


def check_positive(name: str, value: Any) -> None:
  """That a number, also of NumPy, is finite and above 0. Raises ValueError."""
  if not _is_real(value) or not 0 < value < math.inf:
    raise ValueError(f'{name}: wanted a finite number above 0, got {value!r}')


def _is_real(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kind(value: Any) -> str:
  return type(value).__name__
