"""What the bitstream makes of a file's integers, beside what it could have made of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cgvq_jax.bitstream import container, histograms, ordering
from cgvq_jax.bitstream.ans import Stack, Writer
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols

_ROUNDS = 7
_PARAMETER_BITS = 16


def orders(symbols: CodebookSymbols) -> dict[str, Any]:
  """Bytes of the same picture by each order, and how much of log2 of the orders each saves.

  `worth` is the sum of log2 N_k! over the clusters, bits. Milliseconds are medians of warm runs.
  """
  ordered = {name: symbols._replace(order=name) for name in ordering.ORDERS}
  made = {name: container.write(symbols) for name, symbols in ordered.items()}
  total = int(symbols.counts.sum())
  worth = sum(math.lgamma(count + 1) for count in symbols.counts.tolist()) / math.log(2)
  plain = 8 * len(made['none'])
  row: dict[str, Any] = {'gaussians': total, 'clusters': len(symbols.counts), 'worth': worth}
  for name, symbols in ordered.items():
    data = made[name]
    row[name] = {
      'bytes': len(data),
      'bpp': 8 * len(data) / (symbols.height * symbols.width),
      'positions': container.sections(data)['positions'],
      'saved_bits': plain - 8 * len(data),
      'write_ms': _median_ms(lambda symbols=symbols: container.write(symbols)),
      'read_ms': _median_ms(lambda data=data: container.read(data)),
    }
  return row


def _median_ms(function: Callable[[], Any]) -> float:
  seconds = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


def columns(symbols: CodebookSymbols) -> list[dict[str, Any]]:
  """Bits of each column of rotation, scale and colour, by the bitstream and by other models.

  `entropy` is the empirical one given the cluster, each cluster's histogram known and free.
  `unbiased` adds half a nat for every symbol but one that occurs in a cluster, since a histogram of
  few values has less entropy than what they came from (Miller 1955). `adaptive` is an ideal coder
  that counts each cluster's symbols from 1/2 (Krichevsky & Trofimov 1981); `gaussian` and `laplace`
  have two parameters of 16 bits for each cluster.
  """
  rows = []
  for attribute in ATTRIBUTES[1:]:
    stream = getattr(symbols, attribute)
    for index, alphabet in enumerate(stream.alphabets):
      values, counts = stream.symbols[:, index], symbols.counts
      parts = [p for p in np.split(values, np.cumsum(counts)[:-1]) if p.size]
      occurrences = np.stack([np.bincount(part, minlength=alphabet) for part in parts])
      empirical = _cross_entropy(occurrences, occurrences)
      writer = Writer()
      model = histograms.put_model(writer, values, histograms.Layout(alphabet, counts))
      tables = Stack(writer).num_bits
      histograms.put_values(writer, model, values, counts)
      rows.append(
        {
          'column': f'{attribute} {index}',
          'entropy': empirical,
          'unbiased': empirical + _missing(occurrences),
          'tables': tables,
          'ours': Stack(writer).num_bits,
          'adaptive': _adaptive(occurrences),
          'gaussian': _parametric(occurrences, 2),
          'laplace': _parametric(occurrences, 1),
        }
      )
  return rows


def _cross_entropy(
  occurrences: Int[np.ndarray, 'G A'], weights: Int[np.ndarray, 'G A'] | Float[np.ndarray, 'G A']
) -> float:
  share = weights / weights.sum(axis=1, keepdims=True)
  return float(-np.sum(occurrences * np.log2(np.where(occurrences > 0, share, 1))))


def _missing(occurrences: Int[np.ndarray, 'G A']) -> float:
  kinds = np.count_nonzero(occurrences, axis=1)
  return float(np.sum(kinds - 1) / 2 / math.log(2))


def _adaptive(occurrences: Int[np.ndarray, 'G A']) -> float:
  log_gamma = np.vectorize(math.lgamma)
  num_symbols, totals = occurrences.shape[1], occurrences.sum(axis=1)
  nats = log_gamma(totals + num_symbols / 2) - math.lgamma(num_symbols / 2)
  nats = nats - np.sum(log_gamma(occurrences + 0.5) - math.lgamma(0.5), axis=1)
  return float(np.sum(nats) / math.log(2))


def _parametric(occurrences: Int[np.ndarray, 'G A'], power: int) -> float:
  """exp(-|x - center|^power / scale): Laplace's by power 1, the Gaussian by 2."""
  symbol = np.arange(occurrences.shape[1])
  totals = occurrences.sum(axis=1, keepdims=True)
  if power == 2:
    center = occurrences @ symbol[:, None] / totals
  else:
    center = np.argmax(2 * np.cumsum(occurrences, axis=1) >= totals, axis=1)[:, None]
  distance = np.abs(symbol - center) ** power
  scale = np.sum(occurrences * distance, axis=1, keepdims=True) / totals
  weights = np.exp(-distance / np.maximum(power * scale, 1e-3)) + 1e-9
  return _cross_entropy(occurrences, weights) + 2 * _PARAMETER_BITS * len(occurrences)


def order_table(rows: Sequence[dict[str, Any]]) -> str:
  names = list(ordering.ORDERS)
  header = ['file', 'N', 'K', 'worth bits', *(f'{name} bytes' for name in names)]
  header += [f'{name} saves' for name in names[:-1]]
  header += [f'{name} {what} ms' for name in names for what in ('write', 'read')]
  lines = [f'| {" | ".join(header)} |', len(header) * '|---' + '|']
  for row in rows:
    cells = [row['file'], row['gaussians'], row['clusters'], f'{row["worth"]:.0f}']
    cells += [row[name]['bytes'] for name in names]
    cells += [f'{row[name]["saved_bits"] / max(row["worth"], 1):.1%}' for name in names[:-1]]
    cells += [f'{row[name][f"{what}_ms"]:.1f}' for name in names for what in ('write', 'read')]
    lines.append(f'| {" | ".join(map(str, cells))} |')
  return '\n'.join(lines)


def column_table(rows: Sequence[dict[str, Any]]) -> str:
  """Bytes of each column of a file, and of all of them."""
  names = ['entropy', 'unbiased', 'tables', 'ours', 'adaptive', 'gaussian', 'laplace']
  header = ['file', 'column', *names]
  header += [f'ours / ({floor} + tables)' for floor in names[:2]]
  lines = [f'| {" | ".join(header)} |', len(header) * '|---' + '|']
  for file in dict.fromkeys(row['file'] for row in rows):
    own = [row for row in rows if row['file'] == file]
    total = {name: sum(row[name] for row in own) for name in names}
    for row in [*own, {'column': 'all', **total}]:
      cells = [file, row['column'], *(f'{row[name] / 8:.0f}' for name in names)]
      cells += [f'{row["ours"] / (row[floor] + row["tables"]):.4f}' for floor in names[:2]]
      lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)
