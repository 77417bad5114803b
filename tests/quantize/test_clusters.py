"""The canonical form, the features and clusters of Gaussians, and their padded layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax.primitives.geometry import canonical
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize.clusters import cluster, features, join, layout, split


def some_gaussians(count=200, channels=3, seed=0):
  random = np.random.default_rng(seed)
  return Gaussians(
    mean_xy=jnp.asarray(random.uniform(0, 100, (count, 2)), jnp.float32),
    log_scale=jnp.asarray(random.normal(1, 0.7, (count, 2)), jnp.float32),
    rotation=jnp.asarray(random.uniform(-20, 20, count), jnp.float32),
    color=jnp.asarray(random.uniform(-1, 2, (count, channels)), jnp.float32),
  )


def covariance(gaussians):
  cos, sin = np.cos(gaussians.rotation), np.sin(gaussians.rotation)
  rotation = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
  variance = np.exp(2 * np.asarray(gaussians.log_scale, np.float64))
  return np.einsum('nij,nj,nkj->nik', rotation, variance, rotation)


def test_canonical_is_the_same_image():
  gaussians = some_gaussians()
  same = canonical(gaussians)
  np.testing.assert_allclose(covariance(same), covariance(gaussians), rtol=1e-4, atol=1e-3)
  np.testing.assert_array_equal(same.mean_xy, gaussians.mean_xy)
  np.testing.assert_array_equal(same.color, gaussians.color)


def test_canonical_is_unique():
  same = canonical(some_gaussians())
  assert np.all(same.log_scale[:, 0] >= same.log_scale[:, 1])
  assert np.all((same.rotation >= 0) & (same.rotation < np.float32(np.pi)))
  jax.tree.map(np.testing.assert_array_equal, canonical(same), same)


@pytest.mark.parametrize('rotation', [-1e-9, -1e-30, 0.0, np.pi, 2 * np.pi, -np.pi])
def test_canonical_rotation_stays_below_pi(rotation):
  gaussians = some_gaussians(1).replace(
    rotation=jnp.array([rotation], jnp.float32), log_scale=jnp.array([[1.0, 0.0]])
  )
  assert 0 <= float(canonical(gaussians).rotation[0]) < np.float32(np.pi)


def test_features_are_standardized_and_in_order():
  gaussians = some_gaussians(channels=4)
  rows = np.asarray(features(gaussians))
  assert rows.shape == (200, 7)
  np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-5)
  same = canonical(gaussians)
  columns = [same.rotation, *same.log_scale.T, *same.color.T]
  for row, column in zip(rows.T, columns, strict=True):
    assert np.corrcoef(row, column)[0, 1] > 0.9999


def test_features_ignore_position_and_parameterization():
  gaussians = some_gaussians()
  moved = gaussians.replace(
    mean_xy=gaussians.mean_xy[::-1],
    log_scale=gaussians.log_scale[:, ::-1],
    rotation=gaussians.rotation - jnp.pi / 2,
  )
  np.testing.assert_allclose(features(moved), features(gaussians), atol=1e-4)


def test_constant_columns_are_zero():
  gaussians = some_gaussians().replace(color=jnp.full((200, 3), 0.1))
  rows = np.asarray(features(gaussians))
  np.testing.assert_array_equal(rows[:, 3:], 0)
  np.testing.assert_array_equal(features(some_gaussians(1)), np.zeros((1, 6)))


def test_cluster_finds_groups_of_one_colour_at_any_position():
  group = np.random.default_rng(2).integers(0, 3, 200)
  gaussians = some_gaussians().replace(
    color=jnp.asarray(10 * np.eye(3)[group]), log_scale=jnp.ones((200, 2)), rotation=jnp.ones(200)
  )
  labels = np.asarray(cluster(jax.random.key(0), gaussians, 3))
  assert len(set(zip(group, labels, strict=True))) == 3
  # The caller may choose the features.
  by_x = cluster(jax.random.key(0), gaussians, 2, features=lambda g: g.mean_xy[:, :1])
  x = np.asarray(gaussians.mean_xy[:, 0])
  means = sorted((x[by_x == 0], x[by_x == 1]), key=np.mean)
  assert means[0].max() < means[1].min()


@pytest.mark.parametrize('labels, num_clusters', [
  ([0], 1),
  ([2, 0, 2, 2, 0], 4),
  (np.arange(1000) % 7, 7),
  (np.repeat([5, 3], [65, 64]), 6),
])  # fmt: skip
def test_layout(labels, num_clusters):
  labels = np.asarray(labels)
  clusters = layout(labels, num_clusters)
  members, mask, counts, slot = jax.tree.map(
    np.asarray, (clusters.members, clusters.mask, clusters.counts, clusters.slot)
  )
  assert clusters.num_clusters == num_clusters
  np.testing.assert_array_equal(counts, [np.sum(labels == k) for k in range(num_clusters)])
  for k in range(num_clusters):
    np.testing.assert_array_equal(members[k, : counts[k]], np.flatnonzero(labels == k))
    np.testing.assert_array_equal(members[k, counts[k] :], 0)
    np.testing.assert_array_equal(mask[k], np.arange(mask.shape[1]) < counts[k])
  np.testing.assert_array_equal(members.reshape(-1)[slot], np.arange(labels.size))
  assert np.all(mask.reshape(-1)[slot])
  # The smallest of four sizes per octave, from 64 on, that holds the largest cluster.
  sizes = [quarters * 2**octave for octave in range(4, 20) for quarters in (4, 5, 6, 7)]
  assert mask.shape[1] == min(size for size in sizes if size >= counts.max())


def test_layout_errors_name_bad_labels():
  with pytest.raises(ValueError, match=r'labels must be in 0\.\.2, got 0\.\.3'):
    layout(np.array([0, 3]), 3)
  with pytest.raises(ValueError, match=r'got -1\.\.0'):
    layout(np.array([0, -1]), 3)
  with pytest.raises(ValueError, match='N >= 1'):
    layout(np.array([], int), 3)


@pytest.fixture(scope='module')
def clusters():
  return layout(np.random.default_rng(3).choice([0, 1, 1, 1, 3], 150), 5)


def plain_split(rows, clusters):
  return jnp.where(clusters.mask[..., None], rows[clusters.members], 0)


def plain_join(rows, clusters):
  return rows.reshape(-1, rows.shape[-1])[clusters.slot]


def test_split_and_join_are_inverses(clusters):
  rows = jnp.arange(450.0).reshape(150, 3)
  padded = split(rows, clusters)
  np.testing.assert_array_equal(join(padded, clusters), rows)
  real = plain_split(rows, clusters)
  np.testing.assert_array_equal(padded, np.where(clusters.mask[..., None], real, rows[0]))
  # Any trailing shape, integers too.
  for shape in ((150,), (150, 2, 2)):
    symbols = jnp.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(join(split(symbols, clusters), clusters), symbols)


def test_gradients_match_plain_indexing(clusters):
  random = np.random.default_rng(4)
  rows = jnp.asarray(random.normal(size=(150, 3)), jnp.float32)
  padded = jnp.asarray(random.normal(size=(*clusters.mask.shape, 3)), jnp.float32)
  for ours, plain, x, cotangent in (
    (split, plain_split, rows, padded),
    (join, plain_join, padded, rows),
  ):
    want = jax.vjp(lambda x, plain=plain: plain(x, clusters), x)[1](cotangent)
    got = jax.vjp(lambda x, ours=ours: ours(x, clusters), x)[1](cotangent)
    np.testing.assert_array_equal(got[0], want[0])


def test_gradients_need_no_scatter(clusters):
  def there_and_back(rows, clusters):
    return jnp.sum(join(split(rows, clusters) ** 2, clusters) ** 2)

  gradient = jax.jit(jax.grad(there_and_back))
  rows = jnp.ones((150, 3))
  assert 'scatter' not in gradient.lower(rows, clusters).as_text()
  np.testing.assert_array_equal(gradient(rows, clusters), 4 * rows)
