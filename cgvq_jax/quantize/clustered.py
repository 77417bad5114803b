"""One image as integers, cluster by cluster: what a file of codebooks holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Stream(NamedTuple):
  """One attribute as integers: what the file holds of it."""

  quantizer: str  # Quantizer.name
  alphabets: tuple[int, ...]  # Quantizer.alphabets
  tables: dict[str, np.ndarray]  # Quantizer.tabulate: [K, ...], uint8 or uint16
  symbols: np.ndarray  # [N, S] int32, cluster by cluster


class CodebookSymbols(NamedTuple):
  """One encoded image as integers; the file is a lossless coding of exactly this."""

  height: int  # px
  width: int  # px
  channels: int  # 1, 3 or 4
  method: str  # Method.name
  counts: np.ndarray  # [K] int32, Gaussians of each cluster; sum is N
  position: Stream
  rotation_scale: Stream
  color: Stream
