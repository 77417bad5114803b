"""Figures of one decoded image: next to its original, and its worst tiles in other codecs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from cgvq_jax import metrics

if TYPE_CHECKING:
  from jaxtyping import Int, UInt8

  from cgvq_jax.primitives.gaussians import Gaussians

_MAX_ELLIPSES = 3000
_ERROR_GAIN = 4
_TILE = 96  # px
_MAX_TILES = 4


def side_by_side(
  original: UInt8[np.ndarray, 'H W C'],
  decoded: UInt8[np.ndarray, 'H W C'],
  gaussians: Gaussians,
  labels: Int[np.ndarray, 'N'],
  title: str,
) -> Figure:
  """Four panels: original, decoded, their error, and the Gaussians coloured by their labels.

  The error is |original - decoded| x 4, clipped. A Gaussian is drawn as its 1-sigma ellipse; of
  more than 3,000 those of the largest area x largest |colour|. Transparent pixels are shown over
  white, and so is their error.

  Raises:
    ValueError: the two images differ in shape, or there is not one label for each Gaussian.
  """
  if original.shape != decoded.shape:
    raise ValueError(f'decoded: wanted the shape {original.shape}, got {decoded.shape}')
  total = gaussians.num_gaussians
  if np.shape(labels) != (total,):
    raise ValueError(f'labels: wanted [{total}], got shape {np.shape(labels)}')
  height, width = original.shape[:2]
  over_white = [_over_white(image) for image in (original, decoded)]
  error = np.clip(_ERROR_GAIN * np.abs(over_white[0].astype(np.int16) - over_white[1]), 0, 255)
  figure = Figure(figsize=(12, 12 * np.clip(height / width, 0.3, 2) + 1), layout='constrained')
  panels = figure.subplots(2, 2).flatten()
  captions = ('original', 'decoded', f'error: |difference| x {_ERROR_GAIN}')
  for axes, pixels, caption in zip(panels[:3], (*over_white, error), captions, strict=True):
    axes.imshow(pixels.astype(np.uint8), extent=(0, width, height, 0), interpolation='nearest')
    axes.set_title(caption, fontsize=11)
  drawn = draw_ellipses(panels[3], gaussians, np.asarray(labels))
  panels[3].set(xlim=(0, width), ylim=(height, 0), aspect='equal')
  caption = f'{drawn:,} strongest of {total:,} Gaussians, 1 sigma; {len(np.unique(labels))} groups'
  panels[3].set_title(caption, fontsize=11)
  for axes in panels:
    axes.set(xticks=[], yticks=[])
  figure.suptitle(title, fontsize=13, parse_math=False)  # a file's name may hold dollar signs
  return figure


def worst_tiles(
  original: UInt8[np.ndarray, 'H W C'],
  shown: Mapping[str, UInt8[np.ndarray, 'H W C']],
) -> Figure:
  """The tiles of an image in which the first of `shown` has the largest squared error, enlarged.

  One row for each of four tiles of 96 x 96 px, of which a small image has fewer: the tile in the
  original and then in each of `shown`, with its PSNR. Alpha as in `side_by_side`.

  Raises:
    ValueError: an image differs in shape, or `shown` is empty.
  """
  if not shown:
    raise ValueError('shown: wanted one image or more, got none')
  for name, pixels in shown.items():
    if pixels.shape != original.shape:
      raise ValueError(f'{name}: wanted the shape {original.shape}, got {pixels.shape}')
  corners = _worst(original, next(iter(shown.values())))
  columns = {'original': original, **shown}
  size = (2.2 * len(columns), 2.45 * len(corners) + 0.3)
  figure = Figure(figsize=size, layout='constrained')
  panels = figure.subplots(len(corners), len(columns), squeeze=False)
  for row, (top, left) in zip(panels, corners, strict=True):
    part = np.s_[top : top + _TILE, left : left + _TILE]
    for axes, (name, pixels) in zip(row, columns.items(), strict=True):
      axes.imshow(_over_white(pixels)[part], interpolation='nearest')
      label = f'x {left}, y {top}'
      if name != 'original':
        label = f'{metrics.psnr(original[part], pixels[part]):.2f} dB'
      axes.set(xticks=[], yticks=[], xlabel=label)
  for axes, name in zip(panels[0], columns, strict=True):
    axes.set_title(name, fontsize=9)
  return figure


def _worst(original: np.ndarray, decoded: np.ndarray) -> list[tuple[int, int]]:
  """Top left corners of the tiles of the largest squared error, the worst first; no two overlap."""
  last = [max(side - _TILE, 0) for side in original.shape[:2]]  # where the tile at the edge starts
  tops, lefts = (sorted({*range(0, start + 1, _TILE), start}) for start in last)
  error = np.square(original.astype(np.float64) - decoded).sum(-1)
  errors = {
    (top, left): error[top : top + _TILE, left : left + _TILE].sum()
    for top in tops
    for left in lefts
  }
  chosen: list[tuple[int, int]] = []
  for top, left in sorted(errors, key=lambda corner: -errors[corner]):
    if all(abs(top - y) >= _TILE or abs(left - x) >= _TILE for y, x in chosen):
      chosen.append((top, left))
  return chosen[:_MAX_TILES]


def _over_white(pixels: UInt8[np.ndarray, 'H W C']) -> UInt8[np.ndarray, 'H W 3']:
  """What a viewer shows: gray as three equal channels, transparent pixels over white."""
  if pixels.shape[2] < 4:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
  alpha = pixels[..., 3:] / np.float32(255)
  return np.rint(alpha * pixels[..., :3] + 255 * (1 - alpha)).astype(np.uint8)


def draw_ellipses(
  axes: Axes, gaussians: Gaussians, labels: Int[np.ndarray, 'N'], most: int = _MAX_ELLIPSES
) -> int:
  """Draws 1-sigma outlines of at most so many Gaussians, coloured by label; returns their number.

  Those of the largest area x largest |colour| are chosen.
  """
  scale = np.exp(np.asarray(gaussians.log_scale, np.float64))  # [N, 2]
  strength = scale.prod(-1) * np.abs(np.asarray(gaussians.color)).max(-1)
  chosen = np.argsort(-strength)[:most]
  outlines = EllipseCollection(
    2 * scale[chosen, 0],
    2 * scale[chosen, 1],
    np.degrees(np.asarray(gaussians.rotation)[chosen]),
    units='xy',  # data units, so the downward y axis turns the ellipses too
    offsets=np.asarray(gaussians.mean_xy)[chosen],
    offset_transform=axes.transData,
    facecolors='none',
    edgecolors=matplotlib.colormaps['turbo'](labels[chosen] / max(labels.max(), 1)),
    linewidths=0.6,
    alpha=0.7,
  )
  axes.add_collection(outlines)
  return len(chosen)
