"""Positions as boxes of the picture: halved until each Gaussian is alone in its box.

A box of several rows is cut across its longest side, its halves are cut again, until a box holds
one row or one cell. The boxes follow from how many rows each first half has, and nothing else: an
encoder partitions the rows and stores these counts, a decoder rebuilds the boxes from them. The
place of a mean inside its box is quantized by `quantize.adaptive`, in cells that suit the size of
the Gaussian. As the rows have no order, n of them take log2 n! bits less than in a fixed one.

`bitstream.point_sets` halves boxes in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from collections.abc import Callable, Sequence

  from jaxtyping import Bool, Float, Int

UNIT = 16  # corners and sizes are in 1/16 px
MAX_OVERHANG = 1 << 13  # px that the boxes may reach beyond an edge of the picture


class Boxes(NamedTuple):
  """m boxes, none of them empty."""

  group: Int[np.ndarray, 'm']  # which point set the rows belong to
  low: Int[np.ndarray, 'm D']  # corner
  size: Int[np.ndarray, 'm D']  # >= 1
  count: Int[np.ndarray, 'm']  # rows inside, >= 1

  def where(self, mask: Bool[np.ndarray, 'm']) -> Boxes:
    index = np.flatnonzero(mask)  # several times faster than the mask, for rows
    return Boxes(*(np.take(field, index, axis=0) for field in self))


class Depth(NamedTuple):
  """The boxes that are cut after as many cuts."""

  count: Int[np.ndarray, 'm']  # rows of each box
  first: Int[np.ndarray, 'm']  # of these, in its first half


class Partition(NamedTuple):
  """n rows and their boxes, in the order in which a decoder gets the boxes."""

  order: Int[np.ndarray, 'n']  # of the rows
  boxes: Boxes  # [n], that of each row
  depths: list[Depth]


# --- halving ---


def kinds(boxes: Boxes) -> tuple[Bool[np.ndarray, 'm'], Bool[np.ndarray, 'm']]:
  """Masks of the boxes with several cells that hold one row, and of those that hold several."""
  several_cells = (boxes.size > 1).any(axis=1)
  return several_cells & (boxes.count == 1), several_cells & (boxes.count > 1)


def cuts(boxes: Boxes) -> tuple[Int[np.ndarray, 'm'], Int[np.ndarray, 'm']]:
  """The longest side of each box, the first of equals, and where its second half begins."""
  side = np.argmax(boxes.size, axis=1)
  box = np.arange(len(side))
  return side, boxes.low[box, side] + (boxes.size[box, side] + 1) // 2


def halves(
  boxes: Boxes, side: Int[np.ndarray, 'm'], cut: Int[np.ndarray, 'm'], first: Int[np.ndarray, 'm']
) -> tuple[Boxes, Int[np.ndarray, 'm2']]:
  """Both halves of each box, next to each other and without the empty ones; and for each half of
  each box its index among them. `first` rows are in the first half."""
  box = np.arange(len(side))
  low, size = (np.repeat(array, 2, axis=0) for array in (boxes.low, boxes.size))
  before = cut - boxes.low[box, side]
  low[2 * box + 1, side] = cut
  size[2 * box, side] = before
  size[2 * box + 1, side] -= before
  count = np.stack([first, boxes.count - first], axis=1).ravel()
  halves = Boxes(np.repeat(boxes.group, 2), low, size, count)
  return halves.where(count > 0), np.cumsum(count > 0) - 1


# --- a box for each row ---


def partition(rows: Int[np.ndarray, 'n D'], size: Int[np.ndarray, 'D']) -> Partition:
  """Halves a box 0..size-1 until each row, or all rows with the same numbers, are alone in one."""
  rows = np.asarray(rows, np.int64)
  boxes, inside = _whole(size, len(rows)), np.arange(len(rows))
  box = np.zeros(len(rows), np.int64)  # of each row in `inside`
  order, leaves, depths = [], [], []
  while boxes.count.size:
    _, several = kinds(boxes)
    done = ~several[box]
    by_box = np.flatnonzero(done)[np.argsort(box[done], kind='stable')]
    order.append(inside[by_box])
    leaves.append(_each(boxes.where(~several)))
    inside, box = inside[~done], (np.cumsum(several) - 1)[box[~done]]
    boxes = boxes.where(several)
    if not boxes.count.size:
      break
    side, cut = cuts(boxes)
    behind = rows[inside, side[box]] >= cut[box]
    first = np.bincount(box[~behind], minlength=len(boxes.count))
    depths.append(Depth(boxes.count, first))
    boxes, index = halves(boxes, side, cut, first)
    box = index[2 * box + behind]
  return Partition(np.concatenate(order), _joined(leaves), depths)


def rebuild(
  count: int,
  size: Int[np.ndarray, 'D'],
  first_of: Callable[[Int[np.ndarray, 'm']], Int[np.ndarray, 'm']],
) -> Boxes:
  """The boxes of `count` rows, as `partition` orders them.

  `first_of(count)` is asked once for each depth: the rows of each box -> those in its first half.
  """
  boxes, leaves = _whole(size, count), []
  while boxes.count.size:
    _, several = kinds(boxes)
    leaves.append(_each(boxes.where(~several)))
    boxes = boxes.where(several)
    if not boxes.count.size:
      break
    side, cut = cuts(boxes)
    boxes, _ = halves(boxes, side, cut, first_of(boxes.count))
  return _joined(leaves)


def _whole(size: Int[np.ndarray, 'D'], count: int) -> Boxes:
  size = np.asarray(size, np.int64)[None]
  return Boxes(np.zeros(1, np.int64), np.zeros_like(size), size, np.array([count], np.int64))


def _each(boxes: Boxes) -> Boxes:
  """A box for each row."""
  return Boxes(*(np.repeat(field, boxes.count, axis=0) for field in boxes))


def _joined(leaves: list[Boxes]) -> Boxes:
  return Boxes(*(np.concatenate(fields) for fields in zip(*leaves, strict=True)))


# --- of the means of a picture ---


def boxes_of(
  means: Float[np.ndarray, 'N 2'], height: int, width: int
) -> tuple[Int[np.ndarray, 'N 2'], Int[np.ndarray, 'N 2']]:
  """Corners and sizes of the boxes that means, px, are alone in, 1/UNIT px.

  A mean further than MAX_OVERHANG px beyond an edge counts as one that is just so far.
  """
  places = np.floor(means * UNIT).astype(np.int64)
  corner, size = outer(height, width, overhangs(places, places + 1, height, width))
  order, boxes, _ = partition(np.clip(places - corner, 0, size - 1), size)
  back = np.argsort(order)
  return (boxes.low + corner)[back], boxes.size[back]


def overhangs(
  low: Int[np.ndarray, 'N 2'], high: Int[np.ndarray, 'N 2'], height: int, width: int
) -> list[int]:
  """How far boxes reach beyond the left, top, right and bottom edge, in whole px, the farthest of
  each, MAX_OVERHANG at most."""
  far = high.max(axis=0) - UNIT * np.array([width, height])
  return [int(np.clip(-(side // UNIT), 0, MAX_OVERHANG)) for side in (*low.min(axis=0), *(-far))]


def outer(
  height: int, width: int, overhang: Sequence[int]
) -> tuple[Int[np.ndarray, '2'], Int[np.ndarray, '2']]:
  """Corner and size, x and y, of the box around all boxes, 1/UNIT px."""
  left, top, right, bottom = (int(side) for side in overhang)
  corner = -UNIT * np.array([left, top], np.int64)
  return corner, UNIT * np.array([width + left + right, height + top + bottom], np.int64)
