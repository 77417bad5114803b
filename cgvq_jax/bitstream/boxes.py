"""Places in a picture as boxes: cut in halves until each has a box of its own.

As `sets`, but a row that is alone is told no further: its box is what others tell its place by, in
steps of their own. n places in any order cost log2 n! bits more.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from cgvq_jax.bitstream.ans import Reader, Writer
from cgvq_jax.bitstream.point_sets import Boxes, cuts, halves, kinds, put_counts, take_counts


def put(
  writer: Writer, rows: Int[np.ndarray, 'n D'], size: Int[np.ndarray, 'D']
) -> tuple[Int[np.ndarray, 'n'], Boxes]:
  """Codes which box each row is alone in, or alone with its equals, of a box 0..size-1.

  Returns the order in which a decoder meets the rows, and the box of each in this order.
  """
  rows = np.asarray(rows, np.int64)
  boxes, inside = _whole(size, len(rows)), np.arange(len(rows))
  box = np.zeros(len(rows), np.int64)  # of each row in `inside`
  order, leaves = [], []
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
    put_counts(writer, first, boxes.count)
    boxes, index = halves(boxes, side, cut, first)
    box = index[2 * box + behind]
  return np.concatenate(order), _joined(leaves)


def take(reader: Reader, count: int, size: Int[np.ndarray, 'D']) -> Boxes:
  """The inverse of `put`: the box of each of `count` rows."""
  boxes, leaves = _whole(size, count), []
  while boxes.count.size:
    _, several = kinds(boxes)
    leaves.append(_each(boxes.where(~several)))
    boxes = boxes.where(several)
    if not boxes.count.size:
      break
    side, cut = cuts(boxes)
    boxes, _ = halves(boxes, side, cut, take_counts(reader, boxes.count))
  return _joined(leaves)


def _whole(size: Int[np.ndarray, 'D'], count: int) -> Boxes:
  size = np.asarray(size, np.int64)[None]
  return Boxes(np.zeros(1, np.int64), np.zeros_like(size), size, np.array([count], np.int64))


def _each(boxes: Boxes) -> Boxes:
  """A box for each row."""
  return Boxes(*(np.repeat(field, boxes.count, axis=0) for field in boxes))


def _joined(leaves: list[Boxes]) -> Boxes:
  return Boxes(*(np.concatenate(fields) for fields in zip(*leaves, strict=True)))
