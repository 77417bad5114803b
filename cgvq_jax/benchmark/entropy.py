"""Bits that the bitstream spends on a file's integers, with entropies and other models' costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cgvq_jax.bitstream import container, histograms, ordering
from cgvq_jax.bitstream.ans import Stack, Writer
from cgvq_jax.evaluate import tables
from cgvq_jax.evaluate.timer import repeat
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols

_ROUNDS = 7
_PARAMETER_BITS = 16


def orders(symbols: CodebookSymbols) -> dict[str, Any]:
  """Bytes of the same Gaussians in each order of the file, and the bits that each order saves.

  `permutation_bits` is the sum of log2 N_k! over the clusters: the information in the order of the
  Gaussians, which the picture does not need. Milliseconds are medians of warm runs.
  """
  ordered = {name: symbols._replace(order=name) for name in ordering.ORDERS}
  made = {name: container.write(symbols) for name, symbols in ordered.items()}
  total = int(symbols.counts.sum())
  permutation_bits = sum(math.lgamma(count + 1) for count in symbols.counts.tolist()) / math.log(2)
  plain = 8 * len(made['none'])
  row: dict[str, Any] = {'gaussians': total, 'clusters': len(symbols.counts)}
  row['permutation_bits'] = permutation_bits
  for name, symbols in ordered.items():
    data = made[name]
    row[name] = {
      'bytes': len(data),
      'bpp': 8 * len(data) / (symbols.height * symbols.width),
      'positions': container.sections(data)['positions'],
      'saved_bits': plain - 8 * len(data),
      'write_ms': 1e3 * repeat(lambda symbols=symbols: container.write(symbols), _ROUNDS).median,
      'read_ms': 1e3 * repeat(lambda data=data: container.read(data), _ROUNDS).median,
    }
  return row


def columns(symbols: CodebookSymbols) -> list[dict[str, Any]]:
  """Bits of each column of rotation, scale and colour: in the bitstream (`ours`, of which `tables`
  are the histograms), and by other models.

  `entropy` is the empirical one given the cluster, with the histograms free of charge. `unbiased`
  adds half a nat for every symbol but one that occurs in a cluster, since a histogram of few values
  has less entropy than the distribution that they were drawn from (Miller 1955). `adaptive` is an
  ideal coder that counts each cluster's symbols from 1/2 (Krichevsky & Trofimov 1981); `gaussian`
  and `laplace` have two parameters of 16 bits for each cluster.
  """
  rows = []
  for attribute in ATTRIBUTES[1:]:
    stream = getattr(symbols, attribute)
    for index, alphabet in enumerate(stream.alphabets):
      values, counts = stream.symbols[:, index], symbols.counts
      parts = [p for p in np.split(values, np.cumsum(counts)[:-1]) if p.size]
      occurrences = np.stack([np.bincount(part, minlength=alphabet) for part in parts])
      empirical = cross_entropy(occurrences, occurrences)
      writer = Writer()
      model = histograms.put_model(writer, values, histograms.Layout(alphabet, counts))
      tables = Stack(writer).num_bits
      histograms.put_values(writer, model, values, counts)
      rows.append(
        {
          'column': f'{attribute} {index}',
          'entropy': empirical,
          'unbiased': empirical + miller_correction(occurrences),
          'tables': tables,
          'ours': Stack(writer).num_bits,
          'adaptive': adaptive_cost(occurrences),
          'gaussian': parametric_cost(occurrences, 2),
          'laplace': parametric_cost(occurrences, 1),
        }
      )
  return rows


def cross_entropy(
  occurrences: Int[np.ndarray, 'G A'], weights: Int[np.ndarray, 'G A'] | Float[np.ndarray, 'G A']
) -> float:
  """Bits of symbols that occur so often in G groups, each encoded by its group's weights."""
  share = weights / weights.sum(axis=1, keepdims=True)
  return float(-np.sum(occurrences * np.log2(np.where(occurrences > 0, share, 1))))


def miller_correction(occurrences: Int[np.ndarray, 'G A']) -> float:
  """The mean difference between the true and the empirical entropy of few symbols, bits: half a nat
  for every symbol but one that occurs in a group."""
  kinds = np.count_nonzero(occurrences, axis=1)
  return float(np.sum(kinds - 1) / 2 / math.log(2))


def adaptive_cost(occurrences: Int[np.ndarray, 'G A']) -> float:
  """Bits of an ideal adaptive coder whose counts start from 1/2."""
  log_gamma = np.vectorize(math.lgamma)
  num_symbols, totals = occurrences.shape[1], occurrences.sum(axis=1)
  nats = log_gamma(totals + num_symbols / 2) - math.lgamma(num_symbols / 2)
  nats = nats - np.sum(log_gamma(occurrences + 0.5) - math.lgamma(0.5), axis=1)
  return float(np.sum(nats) / math.log(2))


def parametric_cost(occurrences: Int[np.ndarray, 'G A'], power: int) -> float:
  """Bits by exp(-|x - center|^power / scale), Laplace's for power 1, Gauss's for 2, and of its two
  parameters for each group."""
  symbol = np.arange(occurrences.shape[1])
  totals = occurrences.sum(axis=1, keepdims=True)
  if power == 2:
    center = occurrences @ symbol[:, None] / totals
  else:
    center = np.argmax(2 * np.cumsum(occurrences, axis=1) >= totals, axis=1)[:, None]
  distance = np.abs(symbol - center) ** power
  scale = np.sum(occurrences * distance, axis=1, keepdims=True) / totals
  weights = np.exp(-distance / np.maximum(power * scale, 1e-3)) + 1e-9
  return cross_entropy(occurrences, weights) + 2 * _PARAMETER_BITS * len(occurrences)


def order_table(rows: Sequence[dict[str, Any]]) -> str:
  """Bytes of each file in each order, the share of its permutation's bits saved, and times."""
  names = list(ordering.ORDERS)
  header = ['file', 'N', 'K', 'permutation bits', *(f'{name} bytes' for name in names)]
  header += [f'{name} saves' for name in names[:-1]]
  header += [f'{name} {what} ms' for name in names for what in ('write', 'read')]
  lines = []
  for row in rows:
    cells = [row['file'], row['gaussians'], row['clusters'], f'{row["permutation_bits"]:.0f}']
    cells += [row[name]['bytes'] for name in names]
    most = max(row['permutation_bits'], 1)
    cells += [f'{row[name]["saved_bits"] / most:.1%}' for name in names[:-1]]
    cells += [f'{row[name][f"{what}_ms"]:.1f}' for name in names for what in ('write', 'read')]
    lines.append(cells)
  return tables.table(header, lines)


def column_table(rows: Sequence[dict[str, Any]]) -> str:
  """Bytes of each column of a file, and of all of them."""
  names = ['entropy', 'unbiased', 'tables', 'ours', 'adaptive', 'gaussian', 'laplace']
  header = ['file', 'column', *names]
  header += [f'ours / ({floor} + tables)' for floor in names[:2]]
  lines = []
  for file in dict.fromkeys(row['file'] for row in rows):
    own = [row for row in rows if row['file'] == file]
    total = {name: sum(row[name] for row in own) for name in names}
    for row in [*own, {'column': 'all', **total}]:
      cells = [file, row['column'], *(f'{row[name] / 8:.0f}' for name in names)]
      cells += [f'{row["ours"] / (row[floor] + row["tables"]):.4f}' for floor in names[:2]]
      lines.append(cells)
  return tables.table(header, lines)


def bitstream(files: Sequence[Path]) -> dict[str, Any]:
  """Prints both tables of files of codebooks; ValueError on any other."""
  order_rows, column_rows = [], []
  for file in files:
    symbols = container.read(container.read_file(file))
    if symbols.version != CodebookSymbols.version:
      raise ValueError(f'{file}: wanted a file of codebooks, got one of {symbols.method}')
    order_rows.append({'file': str(file), **orders(symbols)})
    column_rows += [{'file': str(file), **row} for row in columns(symbols)]
  print(f'{order_table(order_rows)}\n\n{column_table(column_rows)}')
  return {'orders': order_rows, 'columns': column_rows}
