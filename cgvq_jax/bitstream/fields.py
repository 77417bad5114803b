"""The fields of a file, byte by byte: checked integers and names.

Integers are varints: seven bits a byte, lowest first, the top bit set on all bytes but the last,
in as few bytes as they fit. Names are a length byte and ASCII. Every error names the field, what
was wanted and what was got.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

_NAME = re.compile(r'[A-Za-z0-9_.+-]{1,32}')
_VARINT_BYTES = 5


class ContainerError(ValueError):
  """A file, or symbols to be written to one, that break the format: the field, wanted, got."""


class FieldWriter:
  """Appends checked fields to `data`. All methods raise ContainerError."""

  def __init__(self):
    self.data = bytearray()

  def varint(self, field: str, value: Any, low: int, high: int) -> int:
    """Returns the value as a Python integer, safe to multiply."""
    number = rest = _within(field, value, low, high)
    while rest >= 128:
      self.data.append(rest & 127 | 128)
      rest >>= 7
    self.data.append(rest)
    return number

  def name(self, field: str, text: Any) -> None:
    name = _checked_name(field, text).encode('ascii')
    self.data.append(len(name))
    self.data += name


class FieldReader:
  """Takes checked fields from data[position:end]. All methods raise ContainerError.

  `sizes` counts the bytes taken while `section` had each of the names in `sections`.
  """

  def __init__(self, data: bytes, position: int, end: int, sections: Iterable[str]):
    self.data, self.position, self.end = data, position, end
    self.sizes = dict.fromkeys(sections, 0)
    self.section = next(iter(self.sizes))

  def take(self, field: str, size: int) -> bytes:
    if size > self.end - self.position:
      raise ContainerError(f'{field}: wanted {size} bytes, got {self.end - self.position}')
    self.position += size
    self.sizes[self.section] += size
    return self.data[self.position - size : self.position]

  def varint(self, field: str, low: int, high: int) -> int:
    number, shift, byte = 0, 0, 128
    while byte >= 128:
      (byte,) = self.take(field, 1)
      number |= (byte & 127) << shift
      shift += 7
      if shift > 7 * _VARINT_BYTES or (byte == 0 and shift > 7):
        raise ContainerError(f'{field}: wanted the shortest varint, got a longer one')
    return _within(field, number, low, high)

  def name(self, field: str) -> str:
    (size,) = self.take(field, 1)
    return _checked_name(field, self.take(field, size).decode('latin-1'))


def _within(field: str, value: Any, low: int, high: int) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    raise ContainerError(f'{field}: wanted an integer, got {value!r}') from None
  if not low <= number <= high:
    raise ContainerError(f'{field}: wanted {low}..{high}, got {number}')
  return number


def _checked_name(field: str, text: Any) -> str:
  if not isinstance(text, str) or not _NAME.fullmatch(text):
    raise ContainerError(f'{field}: wanted 1 to 32 of A-Z a-z 0-9 _ . + -, got {text!r}')
  return text
