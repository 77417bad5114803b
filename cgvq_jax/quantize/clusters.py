"""Clusters of Gaussians of similar shape and colour, and their padded [K, P, ...] layout."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cgvq_jax.primitives.geometry import canonical
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import kmeans

# P is one of four sizes per octave, so that most images of one size share a compiled program.
_MIN_ROWS = 64


@struct.dataclass
class Clusters:
  """N members in K clusters, laid out as [K, P] rows padded to the largest cluster.

  `members[k, :counts[k]]` are the members of cluster k in ascending order. `slot[i]` is where
  member i is in the flattened [K * P] layout, so the two are inverses and neither direction
  needs a scatter.
  """

  members: Int[Array, 'K P']  # 0..N-1; padding repeats 0
  mask: Bool[Array, 'K P']  # False on padding
  counts: Int[Array, 'K']
  slot: Int[Array, 'N']  # 0..K*P-1

  @property
  def num_clusters(self) -> int:
    return self.members.shape[0]


@jax.jit
def features(gaussians: Gaussians) -> Float[Array, 'N F']:
  """The features for clustering: [r, log s1, log s2, c_1..c_C], F = 3 + C, standardized.

  Each column has zero mean and unit variance over the N Gaussians; a constant column is 0.
  Positions are left out (the CGVQ poster's features [r, s, c] in R^6).

  The rotation is the plain angle of the canonical Gaussian in [0, pi), as in the paper, although
  0 and pi are the same direction. The periodic (cos 2r, sin 2r) would put both into one cluster,
  whose angles would then span all of [0, pi), and the uniform quantizer of that cluster would need
  its largest step.

  Scales are logarithms, for three reasons: the logarithms are quantized, an error of log s is a
  relative error, and with plain scales the few largest Gaussians would make up most of the variance
  and so get most of the clusters.
  """
  gaussians = canonical(gaussians)
  columns = [gaussians.rotation[:, None], gaussians.log_scale, gaussians.color]
  rows = jnp.concatenate(columns, axis=1)
  # Relative to the first row, because the rounded mean of N equal floats may differ from them.
  rows = rows - rows[:1]
  rows = rows - jnp.mean(rows, axis=0)
  deviation = jnp.sqrt(jnp.mean(rows**2, axis=0))
  return rows / jnp.where(deviation > 0, deviation, 1)


def cluster(
  key: PRNGKeyArray,
  gaussians: Gaussians,
  num_clusters: int,
  *,
  features: Callable[[Gaussians], Float[Array, 'N F']] = features,
  restarts: int = 8,
) -> Int[Array, 'N']:
  """Labels 0..K-1 by K-means on the features; a cluster may be empty if there are few Gaussians.

  Raises:
    ValueError: `num_clusters` or `restarts` below 1.
  """
  return kmeans.fit(key, features(gaussians), num_clusters, restarts=restarts).labels


def layout(labels: Int[np.ndarray, 'N'], num_clusters: int) -> Clusters:
  """Rows for K clusters, in the order of their labels, on the host.

  P is the largest count, at least 64, rounded up to one of four sizes per octave, so that P, and
  with it the compiled programs, seldom differ between images. An empty cluster is a row of padding.

  Raises:
    ValueError: no labels, or a label outside 0..K-1.
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or labels.size < 1:
    raise ValueError(f'labels must be [N] with N >= 1, got shape {labels.shape}')
  if labels.min() < 0 or labels.max() >= num_clusters:
    raise ValueError(f'labels must be in 0..{num_clusters - 1}, got {labels.min()}..{labels.max()}')
  counts = np.bincount(labels, minlength=num_clusters)
  largest = max(int(counts.max()), _MIN_ROWS)
  quarter = max(2 ** (largest.bit_length() - 1) // 4, 1)
  width = -(-largest // quarter) * quarter
  order = np.argsort(labels, kind='stable')  # members, cluster by cluster
  starts = np.cumsum(counts) - counts
  slot = np.empty(labels.size, np.int32)
  slot[order] = labels[order] * width + np.arange(labels.size) - starts[labels[order]]
  members = np.zeros(num_clusters * width, np.int32)
  members[slot] = np.arange(labels.size)
  return Clusters(
    members=jnp.asarray(members.reshape(num_clusters, width)),
    mask=jnp.asarray(np.arange(width) < counts[:, None]),
    counts=jnp.asarray(counts, jnp.int32),
    slot=jnp.asarray(slot),
  )


# Both directions are gathers, and each is the gradient of the other. JAX's own gradient of either
# would be a scatter-add, slow on a CPU and a TPU and not deterministic on a GPU.
@jax.custom_vjp
def split(rows: Float[Array, 'N ...'], clusters: Clusters) -> Float[Array, 'K P ...']:
  """Members to padded cluster rows. Padding repeats member 0 and passes no gradient."""
  return rows[clusters.members]


@jax.custom_vjp
def join(rows: Float[Array, 'K P ...'], clusters: Clusters) -> Float[Array, 'N ...']:
  """Padded cluster rows back to members; the inverse of `split`. Padding is never read."""
  return rows.reshape(-1, *rows.shape[2:])[clusters.slot]


def _split_forward(rows, clusters):
  return split(rows, clusters), clusters


def _split_backward(clusters, cotangent):
  return join(cotangent, clusters), None


def _join_forward(rows, clusters):
  return join(rows, clusters), clusters


def _join_backward(clusters, cotangent):
  rows = split(cotangent, clusters)
  mask = clusters.mask.reshape(clusters.mask.shape + (1,) * (rows.ndim - 2))
  return jnp.where(mask, rows, 0), None


split.defvjp(_split_forward, _split_backward)
join.defvjp(_join_forward, _join_backward)
