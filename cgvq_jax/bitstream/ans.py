"""Entropy coding: integers in and out of one ANS stream, by distributions of integer weights.

Duda's asymmetric numeral system (arXiv 1311.2540) as constriction's default AnsCoder has it: 32-bit
words, 64-bit state, 24-bit probabilities. The stream is a stack, so what is decoded first is
encoded last. Every number that a decoder computes is an integer, and the floats handed to
`constriction` are integers below 2^24 that it multiplies by exactly 1, so what one machine encodes
every machine decodes. docs/FORMAT.md defines each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Int

PRECISION = 24  # bits of a probability, given by constriction's default coder
STEPS = 16  # heights in an octave of frequency
OCTAVES = 15  # from the lowest to the highest frequency of a distribution
COST_UNITS = 1024  # costs are integers, in 1/1024 bit: sums do not depend on their order

_stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_any_uniform = _stream.model.Uniform()


# --- distributions ---


def frequencies(heights: Int[np.ndarray, '*B']) -> Int[np.ndarray, '*B']:
  """(16 + h mod 16) 2^(h div 16) - 16: 16 (2^(h/16) - 1), linear inside each octave.

  The subtraction lets a height of 0 mean a frequency of 0, and makes low heights count in
  sixteenths of one occurrence.
  """
  return ((STEPS + heights % STEPS) << (heights // STEPS)) - STEPS


def normalize_frequencies(frequency: Int[np.ndarray, '*G B']) -> Int[np.ndarray, '*G B']:
  """Integer probabilities in units of 2^-24: each at least 1, the sum exactly 2^24.

  With F_b the frequencies summed up to and including bin b, the free weight 2^24 - B is shared at
  the cuts floor(F_b (2^24 - B) / F_last), and every bin gets 1 more.
  """
  cumulative = np.cumsum(frequency, axis=-1)
  free = (1 << PRECISION) - frequency.shape[-1]
  cuts = cumulative * free // cumulative[..., -1:]
  cuts[..., 1:] -= cuts[..., :-1].copy()
  return cuts + 1


def bit_cost(weights: Int[np.ndarray, '*B']) -> Int[np.ndarray, '*B']:
  """The bits that a symbol of each weight takes, in 1/1024 bit."""
  return np.rint(COST_UNITS * (PRECISION - np.log2(weights))).astype(np.int64)


def uniform_cost(size: int) -> int:
  return round(COST_UNITS * math.log2(size))


def categorical(weights: Int[np.ndarray, 'B']) -> Any:
  """constriction's model of these weights, which sum to 2^24."""
  # constriction gives every bin 1, scales the floats to a sum of 2^24 - B and floors their partial
  # sums. Weights less 1 have that sum already: the scale is 1.0 and nothing is ever rounded.
  return _stream.model.Categorical((weights - 1).astype(np.float64), perfect=False)


# --- the stack ---


class Writer:
  """Collects symbols in the order in which a decoder takes them.

  `push` encodes them, last to first, when all of them are known.
  """

  def __init__(self):
    self._runs: list[tuple[np.ndarray, Any, tuple[np.ndarray, ...]]] = []

  def put(self, symbols: Int[np.ndarray, 'n'], model: Any) -> None:
    self._runs.append((np.asarray(symbols, np.int32), model, ()))

  def put_uniform(self, symbols: Any, size: int) -> None:
    """Symbols below `size`, all equally likely."""
    if size > 1:
      self.put(np.atleast_1d(symbols), _stream.model.Uniform(size))

  def put_below(self, symbols: Int[np.ndarray, 'n'], sizes: Int[np.ndarray, 'n']) -> None:
    """Symbols that are each below a size of its own, all of these equally likely."""
    symbols, sizes = _uncertain(symbols, sizes)
    self._runs.append((symbols, _any_uniform, (sizes,)))

  def push(self, stack: Stack) -> None:
    for symbols, model, parameters in reversed(self._runs):
      if symbols.size:
        stack.coder.encode_reverse(symbols, model, *parameters)


class Stack:
  """The stream during encoding: writers push their symbols onto it."""

  def __init__(self, *writers: Writer):
    self.coder = _stream.stack.AnsCoder()
    for writer in writers:
      writer.push(self)

  @property
  def num_bits(self) -> int:
    return self.coder.num_valid_bits()

  def pop_below(self, sizes: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    """Uniform symbols out of the bits that were pushed before, each below its size."""
    return _below(self.coder, sizes)

  def to_bytes(self) -> bytes:
    # The last word is never 0, so its zero bytes can go and come back.
    return self.coder.get_compressed().astype('<u4').tobytes().rstrip(b'\0')


class Reader:
  """Takes symbols from the bytes of a `Stack`.

  `bits` counts those taken while `section` had each of the names in `sections`.
  """

  def __init__(self, data: bytes, sections: Iterable[str] = ('all',)):
    if data.endswith(b'\0'):
      raise ValueError('coded stream: wanted a last byte other than 0, got 0')
    words = np.frombuffer(data + bytes(-len(data) % 4), '<u4')
    self._coder = _stream.stack.AnsCoder(words.astype(np.uint32))
    self._left = self._coder.num_valid_bits()
    self.bits = dict.fromkeys(sections, 0)
    self._section = next(iter(self.bits))

  @property
  def section(self) -> str:
    return self._section

  @section.setter
  def section(self, name: str) -> None:
    left = self._coder.num_valid_bits()
    self.bits[self._section] += self._left - left
    self._left, self._section = left, name

  def take(self, model: Any, count: int) -> Int[np.ndarray, 'n']:
    return self._coder.decode(model, int(count))

  def take_uniform(self, size: int, count: int) -> Int[np.ndarray, 'n']:
    if size == 1:
      return np.zeros(count, np.int32)
    return self._coder.decode(_stream.model.Uniform(size), int(count))

  def take_below(self, sizes: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    return _below(self._coder, sizes)

  def give_back(self, symbols: Int[np.ndarray, 'n'], sizes: Int[np.ndarray, 'n']) -> None:
    """Encodes uniform symbols onto the rest of the stream: bits to be taken again."""
    symbols, sizes = _uncertain(symbols, sizes)
    if symbols.size:
      self._coder.encode_reverse(symbols, _any_uniform, sizes)

  def finish(self) -> None:
    self.section = self._section
    if not self._coder.is_empty():
      raise ValueError('coded stream: wanted its end after the last value, got more')


def _uncertain(symbols, sizes):
  """Without the symbols of size 1, which can only be 0 and take no bits."""
  uncertain = sizes > 1
  return np.asarray(symbols[uncertain], np.int32), np.asarray(sizes[uncertain], np.int32)


def _below(coder: Any, sizes: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
  symbols = np.zeros(len(sizes), np.int32)
  uncertain = sizes > 1
  if uncertain.any():
    symbols[uncertain] = coder.decode(_any_uniform, np.asarray(sizes[uncertain], np.int32))
  return symbols
