"""K-means: against scikit-learn and definitions, on degenerate points, weights and padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.cluster

from cgvq_jax.quantize import kmeans


@pytest.fixture(scope='module')
def photograph():
  """Colour and gradient of 5,000 patches of a photograph, [5000, 6], standardized."""
  image = skimage.data.astronaut().astype(np.float32) / 255
  down, right = np.gradient(image.mean(axis=-1))
  columns = np.dstack([image, right, down, np.hypot(right, down)])[:510, :510]
  patches = columns.reshape(85, 6, 85, 6, 6).mean(axis=(1, 3)).reshape(-1, 6)
  rows = np.random.default_rng(0).permutation(patches)[:5000]
  return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def fit(points, num_clusters, weights=None, seed=0, **kwargs):
  return kmeans.fit(jax.random.key(seed), points, num_clusters, weights=weights, **kwargs)


@pytest.mark.parametrize('num_clusters', [4, 16])
def test_inertia_is_within_one_percent_of_scikit_learn(photograph, num_clusters):
  theirs = sklearn.cluster.KMeans(num_clusters, n_init=10, random_state=0).fit(photograph)
  ours = fit(photograph, num_clusters)
  assert ours.inertia <= 1.01 * theirs.inertia_


def test_centers_labels_and_inertia_are_consistent(photograph):
  centers, labels, inertia = jax.tree.map(np.asarray, fit(photograph, 16))
  distances = np.sum((photograph[:, None] - centers) ** 2, axis=-1)
  np.testing.assert_array_equal(labels, np.argmin(distances, axis=1))
  np.testing.assert_allclose(inertia, distances.min(axis=1).sum(), rtol=1e-5)
  means = np.stack([photograph[labels == k].mean(axis=0) for k in range(16)])
  np.testing.assert_allclose(centers, means, atol=1e-4)  # it has converged


def test_the_result_depends_on_the_key_alone(photograph):
  one, same, other = (fit(photograph, 16, seed=seed, restarts=1) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  assert np.any(np.asarray(one.centers) != np.asarray(other.centers))


@pytest.mark.parametrize('num_centers', [1, 2, 3, 16, 17, 33, 64, 65])
def test_nearest_matches_all_distances(photograph, num_centers):
  points, centers = photograph[:1000, :3], photograph[-num_centers:, :3]
  labels, distance = kmeans.nearest(jnp.asarray(points), jnp.asarray(centers))
  distances = np.sum((points[:, None] - centers) ** 2, axis=-1)
  np.testing.assert_array_equal(labels, np.argmin(distances, axis=1))
  np.testing.assert_allclose(distance, distances.min(axis=1), rtol=1e-5)


def test_nearest_takes_the_first_of_equals_and_is_exact_on_a_center():
  centers = jnp.array([[5.0], [1000.1], [3.0], [3.0], [5.0]])
  labels, distance = kmeans.nearest(jnp.array([[3.0], [4.0], [1000.1]]), centers)
  np.testing.assert_array_equal(labels, [2, 0, 1])
  np.testing.assert_array_equal(distance, [0, 1, 0])


def test_the_best_restart_wins(photograph):
  points, weights = jnp.asarray(photograph[:256]), jnp.ones(256)

  def alone(key):
    centers = kmeans.lloyd(points, weights, kmeans._seed(key, points, weights, 8), 100)
    return jnp.sum(kmeans.nearest(points, centers)[1])

  runs = jax.lax.map(alone, jax.random.split(jax.random.key(0), 8))
  assert np.argmin(runs) > 0  # otherwise the first run alone would pass
  np.testing.assert_allclose(fit(points, 8).inertia, np.min(runs), rtol=1e-5)


def test_totals_add_up_each_label():
  points, weights = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([1.0, 3.0, 0.5])
  mass, sums = kmeans.totals(points, weights, jnp.array([2, 2, 0]), 3)
  np.testing.assert_array_equal(mass, [0.5, 0, 4])
  np.testing.assert_array_equal(sums, [[2], [0], [7]])


def test_empty_clusters_go_to_the_farthest_points():
  points = jnp.array([[0.0], [1.0], [10.0], [11.0], [50.0], [51.0]])
  # The first center is nearest to every point, so the other two clusters are empty.
  start = jnp.array([[5.0], [500.0], [600.0]])
  centers = kmeans.lloyd(points, jnp.ones(6), start, 20)
  np.testing.assert_allclose(np.sort(centers[:, 0]), [0.5, 10.5, 50.5])
  # No center moves to a point of weight 0.
  centers = kmeans.lloyd(points, jnp.array([1.0, 0, 1, 0, 0, 0]), start, 20)
  assert set(centers[:, 0].tolist()) == {0.0, 10.0}


# The tests below share one shape, and so one compilation.
@pytest.mark.parametrize('distinct', [1, 3, 8])
def test_no_more_distinct_points_than_clusters(photograph, distinct):
  points = np.resize(photograph[:: 5000 // distinct][:distinct] + 10, (256, 6))
  result = fit(points, 8)
  assert np.all(np.isfinite(result.centers))
  # A center is a sum of up to 256 equal float32s over their number: 1e-5 is that sum's rounding.
  np.testing.assert_allclose(result.centers[result.labels], points, rtol=1e-5)
  assert len(np.unique(result.labels)) == distinct


def test_fewer_points_than_clusters(photograph):
  assert fit(photograph[:3], 8, restarts=1).inertia == 0


def test_no_weight_at_all_and_one_member(photograph):
  points = photograph[:256]
  nothing = fit(points, 8, np.zeros(256))
  np.testing.assert_array_equal(nothing.centers, 0)
  assert nothing.inertia == 0
  one = fit(points, 8, np.arange(256) == 7)
  np.testing.assert_array_equal(one.centers, np.tile(np.float32(points[7]), (8, 1)))


def test_weights_equal_replication(photograph):
  points = photograph[:256]
  weights = np.where(np.arange(256) < 100, np.arange(256) % 4, 0)
  repeated = np.repeat(points, weights, axis=0)  # 150 points
  padded = np.resize(repeated, (256, 6))
  ours, theirs = fit(points, 8, weights), fit(padded, 8, np.arange(256) < len(repeated))
  np.testing.assert_allclose(ours.centers, theirs.centers, atol=1e-5)
  np.testing.assert_allclose(ours.inertia, theirs.inertia, rtol=1e-5)


def test_padding_does_not_count(photograph):
  real = np.arange(256) < 200
  want = fit(photograph[:256], 8, real)
  got = fit(np.where(real[:, None], photograph[:256], 1e3), 8, real)
  np.testing.assert_array_equal(got.centers, want.centers)
  np.testing.assert_array_equal(got.labels[:200], want.labels[:200])
  np.testing.assert_array_equal(got.inertia, want.inertia)


def test_vmap_equals_one_by_one(photograph):
  rows = jnp.asarray(photograph[:768].reshape(3, 256, 6))
  weights = (jnp.arange(256) < jnp.array([[256], [1], [0]])).astype(jnp.float32)
  keys = jax.random.split(jax.random.key(0), 3)
  batch = jax.vmap(lambda key, x, w: kmeans.fit(key, x, 8, weights=w))(keys, rows, weights)
  for k in range(3):
    one = kmeans.fit(keys[k], rows[k], 8, weights=weights[k])
    np.testing.assert_allclose(batch.centers[k], one.centers, atol=1e-5)
    np.testing.assert_allclose(batch.inertia[k], one.inertia, rtol=1e-5)


def test_traces_once_and_lowers_without_callbacks(photograph):
  traces = []

  @jax.jit
  def run(key, points):
    traces.append(0)
    return kmeans.fit(key, points, 4, restarts=1)

  for seed in range(2):
    run(jax.random.key(seed), photograph[:100])
  assert len(traces) == 1
  lowered = run.trace(jax.random.key(0), photograph[:100]).lower(lowering_platforms=('tpu', 'cuda'))
  assert 'callback' not in lowered.as_text()


def test_bad_input_is_named():
  points = np.zeros((5, 2))
  with pytest.raises(ValueError, match='points must be'):
    fit(points[0], 2)
  with pytest.raises(ValueError, match='points must be'):
    fit(points[:0], 2)
  with pytest.raises(ValueError, match='weights must have shape'):
    fit(points, 2, np.ones(4))
  with pytest.raises(ValueError, match='num_clusters=0'):
    fit(points, 0)
