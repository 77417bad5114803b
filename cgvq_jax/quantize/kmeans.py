"""K-means as one jitted function: greedy k-means++ seeding, Lloyd steps, restarts, weights.

Every shape is static and every branch is a select, so `fit` runs under `jit` and `vmap` and lowers
to CPU, GPU and TPU alike. Points of weight zero are padding: they are never drawn as seeds, never
counted, and no empty cluster moves to one.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Centers that one loop over the points compares.
_BLOCK = 16
# Squared distance from a center, relative to a point's squared norm, that may be rounding alone.
_ROUNDING = 1e-9


class KMeans(NamedTuple):
  """A partition of N points around K centers."""

  centers: Float[Array, 'K D']  # finite, also those of empty clusters
  labels: Int[Array, 'N']  # 0..K-1, the nearest center
  inertia: Float[Array, '']  # weighted sum of squared distances to the nearest center


def fit(
  key: PRNGKeyArray,
  points: Float[Array, 'N D'],
  num_clusters: int,
  *,
  weights: Float[Array, 'N'] | None = None,
  restarts: int = 8,
  max_steps: int = 100,
) -> KMeans:
  """Minimizes sum_i weights_i |points_i - centers_labels_i|^2; the best of `restarts` runs.

  A run seeds with greedy k-means++ (Arthur and Vassilvitskii 2007, section 2.2, with several draws
  for each center as their conclusion suggests) and takes Lloyd steps until no center changes, at
  most `max_steps`. The same key gives the same partition.

  `num_clusters`, `restarts` and `max_steps` are static under `jit`. Where there are fewer distinct
  points than clusters, the surplus centers repeat another one; where all weights are zero, all
  centers are zero.

  Raises:
    ValueError: points or weights of a wrong shape, or a count below 1.
  """
  points = jnp.asarray(points)
  if points.ndim != 2 or min(points.shape) < 1:
    raise ValueError(f'points must be [N, D] with N, D >= 1, got shape {points.shape}')
  weights = jnp.ones(points.shape[0]) if weights is None else jnp.asarray(weights)
  if weights.shape != points.shape[:1]:
    raise ValueError(f'weights must have shape {points.shape[:1]}, got {weights.shape}')
  if min(num_clusters, restarts, max_steps) < 1:
    raise ValueError(f'{num_clusters=}, {restarts=} and {max_steps=} must be at least 1')
  return _fit(
    key, points.astype(jnp.float32), weights.astype(jnp.float32), num_clusters, restarts, max_steps
  )


def nearest(
  points: Float[Array, 'N D'], centers: Float[Array, 'M D']
) -> tuple[Int[Array, 'N'], Float[Array, 'N']]:
  """The index of the nearest center of each point, and its squared distance.

  Of equal distances the first center is taken. A running minimum over the centers, for all points
  at once: the textbook form, argmin over an [N, M] matrix of |c|^2 - 2 x.c, is about 10 times
  slower on a CPU (argmin does not vectorize), writes the matrix to memory, and suffers from
  cancellation, whereas here a point on its center has distance 0 exactly.
  """
  columns = points.T
  num_points, num_centers = points.shape[0], centers.shape[0]
  # At least two blocks, each full: without a loop around them XLA fuses the comparisons into the
  # consumer of the labels, and a one-hot matrix would repeat them for each of its rows. Padding
  # centers are at infinity, where they are nearest to no point.
  block = min(_BLOCK, -(-num_centers // 2))
  centers = jnp.pad(centers, ((0, -num_centers % block), (0, 0)), constant_values=jnp.inf)

  def compare(best, candidate):
    index, center = candidate
    distance = _squared_distance(columns, center)
    closer = distance < best[1]
    return (jnp.where(closer, index, best[0]), jnp.where(closer, distance, best[1])), None

  start = (jnp.zeros(num_points, jnp.int32), jnp.full(num_points, jnp.inf, points.dtype))
  candidates = (jnp.arange(centers.shape[0], dtype=jnp.int32), centers)
  return lax.scan(compare, start, candidates, unroll=block)[0]


def totals(
  points: Float[Array, 'N D'],
  weights: Float[Array, 'N'],
  labels: Int[Array, 'N'],
  num_clusters: int,
) -> tuple[Float[Array, 'K'], Float[Array, 'K D']]:
  """The weight and the weighted sum of the points of each label.

  A one-hot matrix product, because a scatter-add is atomic and so not deterministic on a GPU, and
  slow on a TPU. In full precision, because TF32 or bfloat16 would round the points.
  """
  one_hot = jnp.arange(num_clusters)[:, None] == labels  # [K, N]
  columns = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1) * weights[:, None]
  sums = jnp.matmul(one_hot.astype(points.dtype), columns, precision=lax.Precision.HIGHEST)
  return sums[:, -1], sums[:, :-1]


def lloyd(
  points: Float[Array, 'N D'],
  weights: Float[Array, 'N'],
  centers: Float[Array, 'K D'],
  max_steps: int,
) -> Float[Array, 'K D']:
  """Moves each center to the mean of its points until none moves (Lloyd 1982, method I).

  A step also moves the center of the first empty cluster, if any, to the point that is farthest
  from its own center. One cluster per step, because the farthest points are often close together,
  and one center then serves them all.
  """
  num_clusters = centers.shape[0]
  norms = jnp.sum(points**2, axis=1)

  def step(state):
    count, centers, _ = state
    labels, distance = nearest(points, centers)
    mass, sums = totals(points, weights, labels, num_clusters)
    empty = mass <= 0
    moved = jnp.where(empty[:, None], centers, sums / jnp.where(empty, 1, mass)[:, None])
    farthest = jnp.argmax(jnp.where(weights > 0, distance, -1))
    # Without the second condition rounding errors would cause endless reseeding where every point
    # is on its center.
    useful = (weights[farthest] > 0) & (distance[farthest] > _ROUNDING * norms[farthest])
    reseed = empty & (jnp.arange(num_clusters) == jnp.argmax(empty)) & useful
    moved = jnp.where(reseed[:, None], points[farthest], moved)
    return count + 1, moved, jnp.any(moved != centers)

  def moving(state):
    return (state[0] < max_steps) & state[2]

  return lax.while_loop(moving, step, (0, centers, jnp.array(True)))[1]


def _seed(key, points, weights, num_clusters):
  """Greedy k-means++: several points are drawn with probabilities proportional to their squared
  distances, and the one that reduces the inertia most is the next center."""
  # As many draws as in scikit-learn.
  num_draws = 2 + int(math.log(num_clusters))
  columns = points.T
  uniform = jax.random.uniform(key, (num_clusters, num_draws))

  def draw(uniform, mass):
    cumulative = jnp.cumsum(mass)
    # Without any mass the index is beyond the last point; the callers replace that draw.
    index = jnp.sum(cumulative <= uniform[:, None] * cumulative[-1], axis=-1)
    return jnp.minimum(index, points.shape[0] - 1), cumulative[-1] > 0

  first, drawn = draw(uniform[0, :1], weights)
  start = jnp.where(drawn, points[first[0]], 0)
  centers = jnp.broadcast_to(start, (num_clusters, points.shape[1]))

  def add(count, state):
    centers, distance = state
    draws, drawn = draw(uniform[count], weights * distance)
    distances = jax.vmap(lambda index: _squared_distance(columns, points[index]))(draws)
    distances = jnp.minimum(distance, distances)  # [draws, N]
    best = jnp.argmin(jnp.sum(weights * distances, axis=1))
    # No mass left: every point is on a center, and this one repeats the first.
    center = jnp.where(drawn, points[draws[best]], centers[0])
    return centers.at[count].set(center), jnp.where(drawn, distances[best], distance)

  state = (centers, _squared_distance(columns, start))
  return lax.fori_loop(1, num_clusters, add, state)[0]


def _squared_distance(columns, center):
  """|x - center|^2 of points stored as D columns [D, N]."""
  # A sum of D terms, not a reduction, so that XLA fuses it into the loop over the points.
  return sum(jnp.square(columns[d] - center[d]) for d in range(columns.shape[0]))


@functools.partial(jax.jit, static_argnames=('num_clusters', 'restarts', 'max_steps'))
def _fit(key, points, weights, num_clusters, restarts, max_steps):
  def run(key):
    seeds = _seed(key, points, weights, num_clusters)
    centers = lloyd(points, weights, seeds, max_steps)
    labels, distance = nearest(points, centers)
    return KMeans(centers, labels, jnp.sum(weights * distance))

  # One run after another: under vmap all would take as many steps as the slowest.
  runs = lax.map(run, jax.random.split(key, restarts))
  best = jnp.argmin(runs.inertia)
  return jax.tree.map(lambda leaf: leaf[best], runs)
