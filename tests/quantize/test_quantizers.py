from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from cgvq_jax.quantize import lattice, uniform, vector
from cgvq_jax.quantize.dequantizers import Codebooks, Grid, NoParams

# Small codebooks, so that a cluster of 60 has more members than entries.
QUANTIZERS = {
  'fp16': lattice.fp16(),
  'lattice': lattice.lattice(),
  'uniform': uniform.uniform(levels=64, num_columns=2),
  'residual': vector.residual(stages=2, entries=8, num_columns=2),
}
COUNTS = np.array([60, 64, 0, 1, 3])  # K = 5 clusters of P = 64 rows
MASK = jnp.asarray(np.arange(64) < COUNTS[:, None])
every = pytest.mark.parametrize('name', QUANTIZERS)


def clustered_rows(padding):
  """[K, P, 2] of clusters at different places; the padding is the caller's."""
  random = np.random.default_rng(0)
  rows = random.normal(size=(5, 1, 2)) + 0.2 * random.normal(size=(5, 64, 2))
  return jnp.asarray(np.where(MASK[..., None], rows, padding), jnp.float32)


def restore(quantizer, tables, alphabets=None):
  """The params of all clusters that a decoder gets."""
  return quantizer.dequantizer.restore(tables, alphabets or quantizer.alphabets)


def learner(quantizer):
  """(params, rows, weights) -> gradients of a loss of the weighted values, and what came out."""

  def total(params, rows, weights):
    out = jax.vmap(quantizer.quantize)(params, rows, MASK)
    return jnp.sum(jnp.sin(out.value) * weights) + jnp.sum(out.loss), out

  return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))


MEMBERS = jnp.where(MASK, 1.0, 0.0)[..., None]
INIT = {name: jax.jit(jax.vmap(q.init)) for name, q in QUANTIZERS.items()}
LEARN = {name: learner(q) for name, q in QUANTIZERS.items()}
KEYS = jax.random.split(jax.random.key(0), 5)
STEPS = jnp.full((5, 64, 2), 0.01)


@pytest.fixture(scope='module')
def rows():
  return clustered_rows(padding=0.25)


@pytest.fixture(scope='module')
def first(rows):
  """The first params of each quantizer."""
  return {name: init(KEYS, rows, MASK, STEPS) for name, init in INIT.items()}


def assert_finite(tree):
  for leaf in jax.tree.leaves(tree):
    assert np.all(np.isfinite(leaf))


@every
def test_values_are_near_and_symbols_in_their_alphabets(rows, first, name):
  _, out = LEARN[name](first[name], rows, MEMBERS)
  assert out.value.shape == rows.shape and out.value.dtype == jnp.float32
  assert out.symbols.shape == (5, 64, len(QUANTIZERS[name].alphabets))
  assert out.symbols.dtype == jnp.int32
  assert np.all((out.symbols >= 0) & (out.symbols < np.array(QUANTIZERS[name].alphabets)))
  error = np.sqrt(np.mean(np.square(out.value - rows)[MASK]))
  assert error < {'fp16': 5e-4, 'lattice': 0.006, 'uniform': 0.01, 'residual': 0.05}[name]


@every
def test_empty_and_small_clusters_are_finite(rows, first, name):
  gradient, out = LEARN[name](first[name], rows, jnp.ones_like(MEMBERS))
  assert_finite((first[name], gradient, out))
  # One member, and three with 8 entries, are coded all but exactly.
  np.testing.assert_allclose(out.value[3, 0], rows[3, 0], rtol=1e-3)
  np.testing.assert_allclose(out.value[4, :3], rows[4, :3], atol=5e-3)


@every
def test_padding_changes_nothing(rows, first, name):
  garbage = clustered_rows(padding=3.0)
  jax.tree.map(np.testing.assert_array_equal, INIT[name](KEYS, garbage, MASK, STEPS), first[name])
  want, got = (LEARN[name](first[name], x, MEMBERS) for x in (rows, garbage))
  np.testing.assert_array_equal(got[1].value[MASK], want[1].value[MASK])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
    (got[0], got[1].params, got[1].loss),
    (want[0], want[1].params, want[1].loss),
  )


@every
def test_params_get_no_gradient_from_padding(rows, first, name):
  # Whatever a caller does with padded rows of the value: the params learn from the members alone.
  gradient, _ = LEARN[name](first[name], rows, 1 - MEMBERS)
  for leaf in jax.tree.leaves(gradient[0]):
    np.testing.assert_array_equal(leaf, 0)


@every
def test_tables_that_do_not_fit_are_refused(first, name):
  quantizer = QUANTIZERS[name]
  tables = quantizer.tabulate(first[name])
  with pytest.raises(ValueError, match='wanted tables'):
    restore(quantizer, tables | {'stranger': np.zeros(5, np.uint8)})
  with pytest.raises(ValueError, match='wanted'):
    restore(quantizer, tables, (*quantizer.alphabets, 3))
  for key, table in tables.items():
    others = {n: t for n, t in tables.items() if n != key}
    with pytest.raises(ValueError, match='wanted tables'):
      restore(quantizer, others)
    for wrong in (table.astype(np.uint32), table[:, :-1], table[..., None]):
      with pytest.raises(ValueError, match=r'table .*: wanted'):
        restore(quantizer, others | {key: wrong})


@every
def test_restored_params_dequantize_to_the_value(rows, first, name):
  quantizer = QUANTIZERS[name]
  tables = quantizer.tabulate(first[name])
  for table in tables.values():
    assert isinstance(table, np.ndarray) and table.dtype in (np.uint8, np.uint16)
    assert table.shape[0] == 5
  restored = restore(quantizer, tables)
  _, out = LEARN[name](restored, rows, MEMBERS)
  for cluster in range(5):
    params = type(restored)(*(leaf[cluster] for leaf in restored))
    value = quantizer.dequantizer.dequantize(params, np.asarray(out.symbols[cluster]))
    assert type(value) is np.ndarray and value.dtype == np.float32
    np.testing.assert_array_equal(value, out.value[cluster])
  # Rounding the params once more changes nothing.
  again = quantizer.tabulate(restored)
  assert tables.keys() == again.keys()
  for key, table in tables.items():
    np.testing.assert_array_equal(again[key], table)
  jax.tree.map(
    np.testing.assert_array_equal,
    restore(quantizer, again),
    restored,
  )
  # And rounding them at all costs little.
  _, before = LEARN[name](first[name], rows, MEMBERS)
  errors = [np.mean(np.square(o.value - rows)[MASK]) for o in (before, out)]
  assert errors[1] < 1.02 * errors[0] + 1e-9


@every
def test_traces_once(rows, first, name):
  quantizer = QUANTIZERS[name]
  learn = learner(quantizer)
  state = first[name]
  for _ in range(2):
    state = learn(state, rows, MEMBERS)[1].params
  restored = restore(quantizer, quantizer.tabulate(state))
  learn(jax.tree.map(jnp.asarray, restored), rows, MEMBERS)
  assert learn._cache_size() == 1


@every
def test_lowers_for_accelerators_without_callbacks(rows, first, name):
  quantizer = QUANTIZERS[name]

  def both(key, params, rows, mask):
    steps = jnp.ones_like(rows)
    return quantizer.init(key, rows, mask, steps), quantizer.quantize(params, rows, mask)

  one = jax.tree.map(lambda leaf: leaf[0], first[name])
  traced = jax.jit(both).trace(KEYS[0], one, rows[0], MASK[0])
  assert 'callback' not in traced.lower(lowering_platforms=('tpu', 'cuda')).as_text()


# Half precision


def test_half_precision_rounds_as_ieee():
  halves = np.arange(65536, dtype=np.uint16).view(np.float16)
  halves = np.unique(halves[np.isfinite(halves)].astype(np.float32))
  between = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
  above, below = (np.nextafter(between, np.float32(s * np.inf)) for s in (1, -1))
  x = np.concatenate([halves, between, above, below])
  x = np.stack([x, x[::-1]], axis=-1)
  out = jax.jit(lattice.fp16().quantize)(NoParams(), x, np.ones(len(x), bool))
  want = x.astype(np.float16)
  np.testing.assert_array_equal(out.value, want.astype(np.float32))
  np.testing.assert_array_equal(out.symbols, want.view(np.uint16))
  value = lattice.fp16().dequantizer.dequantize(NoParams(), np.asarray(out.symbols))
  np.testing.assert_array_equal(value, out.value)


def test_half_precision_clamps_and_stays_straight_through():
  x = jnp.array([[1e9, -1e9], [65519.0, 65530.0], [0.3, -1e-9]])

  def value(x):
    return lattice.fp16().quantize(NoParams(), x, jnp.ones(3, bool)).value

  np.testing.assert_array_equal(value(x)[:2], [[65504, -65504], [65504, 65504]])
  cotangent = jnp.arange(6.0).reshape(3, 2)
  np.testing.assert_array_equal(jax.vjp(value, x)[1](cotangent)[0], cotangent)


def test_the_lattice_step_adds_the_error_that_the_members_own_steps_would():
  steps = jnp.array([[0.01, 0.02], [0.03, 0.02], [9.0, 9.0]])
  mask = jnp.array([True, True, False])
  rows = jnp.array([[-0.5, 0.25], [0.5, 0.75], [-99.0, -99.0]])
  params = lattice.lattice().init(jax.random.key(0), rows, mask, steps)
  wanted = [((0.01**-2 + 0.03**-2) / 2) ** -0.5, 0.02]
  np.testing.assert_allclose(params.step, wanted, rtol=1e-3)
  np.testing.assert_array_equal(params.step, np.float32(np.float16(params.step)))
  assert np.all(params.offset < rows[0])
  out = lattice.lattice().quantize(params, rows, mask)
  np.testing.assert_allclose(out.value[:2], rows[:2], atol=0.6 * np.max(wanted))
  # A member may move below the first ones; what leaves the lattice stays at its edge.
  lower = lattice.lattice().quantize(params, rows - 10 * params.step, mask)
  assert np.all(lower.symbols[:2] == out.symbols[:2] - 10)
  assert np.all(lattice.lattice().quantize(params, rows - 99, mask).symbols == 0)


@pytest.mark.parametrize('step', [0.0, 1e-30, 1e30, np.inf])
def test_a_lattice_takes_any_step(step):
  rows = jnp.array([[-1.2, 0.3], [1.1, 0.4]])
  params = lattice.lattice().init(
    jax.random.key(0), rows, jnp.ones(2, bool), jnp.full((2, 2), step)
  )
  out = lattice.lattice().quantize(params, rows, jnp.ones(2, bool))
  assert_finite(out.value)
  assert np.all((out.symbols >= 0) & (out.symbols < 65536))


def test_straight_through_is_the_value_exactly():
  x, value = jnp.float32(1e8), jnp.float32(0.1)
  assert lattice.straight_through(x, value) == value
  assert jax.grad(lattice.straight_through)(x, value) == 1


# Uniform


def test_learned_step_and_offset_by_hand():
  # step 0.5, offset -1, levels 4: v = (x + 1) / 0.5.
  x = jnp.array([-1.3, -0.9, 0.1, 0.3, 2.0, 9.0])[:, None]  # v = -0.6, 0.2, 2.2, 2.6, 6 | padding
  mask = jnp.array([True] * 5 + [False])
  cotangent = jnp.array([1.0, 2, 4, 8, 16, 32])[:, None]
  grid = Grid(step=jnp.array([0.5]), offset=jnp.array([-1.0]))
  quantizer = uniform.uniform(levels=4, num_columns=1)

  def value(grid, x):
    return quantizer.quantize(grid, x, mask).value

  np.testing.assert_array_equal(quantizer.quantize(grid, x, mask).symbols[:5, 0], [0, 0, 2, 3, 3])
  np.testing.assert_array_equal(value(grid, x)[:5, 0], [-1, -1, 0, 0.5, 0.5])
  by_grid, by_x = jax.vjp(value, grid, x)[1](cotangent)
  scale = 1 / np.sqrt(5 * 3)
  by_step = 1 * 0 + 2 * (0 - 0.2) + 4 * (2 - 2.2) + 8 * (3 - 2.6) + 16 * 3
  np.testing.assert_allclose(by_grid.step, [scale * by_step], rtol=1e-6)
  np.testing.assert_allclose(by_grid.offset, [scale * (1 + 16)], rtol=1e-6)
  np.testing.assert_array_equal(by_x[:5, 0], [0, 2, 4, 8, 0])


def test_the_ends_of_the_range_are_inside():
  x = jnp.array([[-1.0], [0.5]])
  grid = Grid(step=jnp.array([0.5]), offset=jnp.array([-1.0]))

  def value(grid, x):
    return uniform.uniform(levels=4, num_columns=1).quantize(grid, x, jnp.ones(2, bool)).value

  by_grid, by_x = jax.vjp(value, grid, x)[1](jnp.ones((2, 1)))
  np.testing.assert_array_equal(by_x, 1)
  np.testing.assert_array_equal([by_grid.step, by_grid.offset], 0)


def test_first_grid_covers_the_members(rows, first):
  grid = first['uniform']
  for k in (0, 1, 4):
    members = rows[k][MASK[k]]
    np.testing.assert_array_equal(grid.offset[k], members.min(axis=0))
    np.testing.assert_allclose(grid.step[k], np.ptp(members, axis=0) / 63, rtol=1e-5)
  _, out = LEARN['uniform'](grid, rows, MEMBERS)
  assert np.all((np.abs(out.value - rows) <= 0.501 * grid.step[:, None])[MASK])
  # A constant column: its value is level 0.
  constant = uniform.uniform().init(
    jax.random.key(0), jnp.full((9, 3), 0.7), jnp.ones(9, bool), jnp.ones((9, 3))
  )
  assert np.all(constant.step > 0)
  np.testing.assert_allclose(constant.offset, 0.7)


def test_a_step_that_learned_to_vanish_is_held_and_can_grow():
  quantizer = uniform.uniform(levels=4, num_columns=1)
  rows, mask = jnp.array([[5.0], [6.0]]), jnp.ones(2, bool)

  def total(grid):
    out = quantizer.quantize(grid, rows, mask)
    return jnp.sum(out.value), out

  grid = Grid(step=jnp.array([-1.0]), offset=jnp.array([0.0]))
  gradient, out = jax.grad(total, has_aux=True)(grid)
  assert out.params.step[0] == 2.0**-14
  np.testing.assert_array_equal(out.value, np.full((2, 1), 3 * 2.0**-14))
  np.testing.assert_allclose(gradient.step, 6 / np.sqrt(2 * 3), rtol=1e-6)


def test_tables_hold_any_grid():
  quantizer = uniform.uniform()
  steps = np.float32([1e-30, 1e9, -1.0, 0.1, 0.0])[:, None]
  offsets = np.float32([1e9, -1e9, 1e-30, -4.2, 0.0])[:, None]
  restored = restore(
    quantizer,
    quantizer.tabulate(Grid(jnp.asarray(steps), jnp.asarray(offsets))),
    quantizer.alphabets[:1],
  )
  assert_finite(restored)
  tiny = 2.0**-14
  np.testing.assert_allclose(restored.step[:, 0], [tiny, 65504, tiny, 0.1, tiny], rtol=2**-11)
  np.testing.assert_allclose(restored.offset[:, 0], [65504, -65504, 0, -4.2, 0], rtol=2**-11)


# Vector


def codebook(entries, counts):
  """Codebooks of one stage and one column, their sums in keeping with the counts."""
  entries, counts = jnp.array(entries)[None, :, None], jnp.array(counts)[None]
  return Codebooks(entries, counts, entries * counts[..., None])


def test_residual_coding_by_hand():
  books = Codebooks(
    entries=jnp.array([[[0.0, 0], [10, 10]], [[-1, 0], [1, 0]]]),
    counts=jnp.ones((2, 2)),
    sums=jnp.ones((2, 2, 2)),
  )
  rows = jnp.array([[8.5, 9.0], [0.5, 0.0], [0.0, 3.0]])
  quantizer = vector.residual(stages=2, entries=2, num_columns=2, commitment=0.5)
  mask = jnp.array([True, True, False])

  def run(rows):
    out = quantizer.quantize(books, rows, mask)
    return out.value, out.loss

  out = quantizer.quantize(books, rows, mask)
  # The last row is between -1 and 1 in the second stage: the first of equals.
  np.testing.assert_array_equal(out.symbols, [[1, 0], [0, 1], [0, 0]])
  np.testing.assert_array_equal(out.value, [[9, 10], [1, 0], [-1, 0]])
  value = quantizer.dequantizer.dequantize(jax.tree.map(np.asarray, books), np.asarray(out.symbols))
  np.testing.assert_array_equal(value, out.value)
  np.testing.assert_allclose(out.loss, 0.5 * (0.5**2 + 1 + 0.5**2) / (2 * 2))
  cotangent = jnp.arange(6.0).reshape(3, 2)
  pull = jax.vjp(run, rows)[1]
  np.testing.assert_array_equal(pull((cotangent, jnp.zeros(())))[0], cotangent)
  commitment = 0.5 * 2 * (rows - out.value) / (2 * 2) * mask[:, None]
  np.testing.assert_allclose(pull((0 * cotangent, jnp.ones(())))[0], commitment)


def test_moving_averages_by_hand():
  rows, mask = jnp.array([[1.0], [2.0], [9.0], [7.0]]), jnp.array([True, True, True, False])
  quantizer = vector.residual(stages=1, entries=2, num_columns=1, decay=0.8)
  books = quantizer.quantize(codebook([0.0, 10.0], [2.0, 2.0]), rows, mask).params
  np.testing.assert_allclose(books.counts[0], [0.8 * 2 + 0.2 * 2, 0.8 * 2 + 0.2 * 1], rtol=1e-6)
  np.testing.assert_allclose(books.sums[0, :, 0], [0.2 * 3, 0.8 * 20 + 0.2 * 9], rtol=1e-6)
  np.testing.assert_allclose(books.entries[0, :, 0], [0.6 / 2, 17.8 / 1.8], rtol=1e-4)


def test_the_second_stage_follows_the_first_ones_residuals():
  books = Codebooks(
    entries=jnp.array([[[10.0], [0.0]], [[1.0], [-1.0]]]),
    counts=jnp.ones((2, 2)),
    sums=jnp.array([[[10.0], [0.0]], [[1.0], [-1.0]]]),
  )
  rows = jnp.array([[12.0], [-1.0]])  # residuals 2 and -1
  quantizer = vector.residual(stages=2, entries=2, num_columns=1, decay=0.5)
  updated = quantizer.quantize(books, rows, jnp.ones(2, bool)).params
  np.testing.assert_allclose(updated.entries[:, :, 0], [[11, -0.5], [1.5, -1]], rtol=1e-4)


def test_dead_entries_go_to_the_worst_coded_member_one_at_a_time():
  rows = jnp.array([[0.0], [0.1], [1.0], [1.1], [7.0], [4.0], [90.0]])
  mask = jnp.arange(7) < 6  # 90 is padding
  quantizer = vector.residual(stages=1, entries=4, num_columns=1)
  start = codebook([0.0, 1.0, 100.0, 200.0], [4.0, 4.0, 0.5, 0.5])
  first = quantizer.quantize(start, rows, mask).params
  np.testing.assert_array_equal(first.entries[0, 2:, 0], [7, 200])
  np.testing.assert_array_equal(first.counts[0, 2:], np.float32([1, 0.4]))
  np.testing.assert_array_equal(first.sums[0, 2], [7])
  second = quantizer.quantize(first, rows, mask).params
  assert second.entries[0, 3, 0] == 4
  # Once used, it stays alive and at the place of its member.
  third = quantizer.quantize(second, rows, mask)
  np.testing.assert_allclose(third.params.entries[0, 2:, 0], [7, 4], rtol=1e-4)
  assert np.all(third.params.counts > 0.9)


def test_no_revival_with_no_more_members_than_entries():
  rows = jnp.array([[0.0], [1.0], [7.0], [90.0], [90.0]])
  quantizer = vector.residual(stages=1, entries=3, num_columns=1)
  start = codebook([0.0, 1.0, 100.0], [4.0, 4.0, 0.1])
  out = quantizer.quantize(start, rows, jnp.arange(5) < 3)
  assert out.params.entries[0, 2, 0] == 100  # dead, and where it was
  # A cluster coded without error has nothing to gain either.
  out = quantizer.quantize(start, jnp.zeros((5, 1)), jnp.ones(5, bool))
  assert out.params.entries[0, 2, 0] == 100


def test_first_codebooks_are_kmeans_centers_of_the_residuals(rows, first):
  books = first['residual']
  _, out = LEARN['residual'](books, rows, MEMBERS)
  # The first step finds the averages in place, so the codebooks keep still.
  np.testing.assert_allclose(out.params.entries, books.entries, atol=1e-4)
  np.testing.assert_allclose(books.counts.sum(axis=-1), np.stack([COUNTS, COUNTS], axis=-1))
  members = rows[1]
  variance = np.var(members, axis=0).sum()
  first = books.entries[1, 0][out.symbols[1, :, 0]]
  both = out.value[1]
  # 8 centers in two dimensions, then 8 more for what is left.
  errors = [np.square(members - v).sum(axis=1).mean() / variance for v in (first, both)]
  assert errors[0] < 0.2 and errors[1] < 0.3 * errors[0]


@pytest.fixture(scope='module')
def colours():
  """2,000 pixels of a photograph in 4 clusters, [4, 512, 3]; K-means codebooks; their error."""
  image = skimage.data.astronaut().reshape(-1, 3)[::130][:2000] / 255
  rows = np.zeros((4, 512, 3), np.float32)
  rows[:, :500] = image[np.argsort(image.sum(axis=1))].reshape(4, 500, 3)
  mask = jnp.asarray(np.arange(512) < 500)[None].repeat(4, axis=0)
  quantizer = vector.residual(stages=2, entries=64)
  params = jax.jit(jax.vmap(quantizer.init))(KEYS[:4], rows, mask, jnp.ones_like(rows))

  @jax.jit
  def step(params):
    out = jax.vmap(quantizer.quantize)(params, rows, mask)
    return out.params, jnp.mean(jnp.square(out.value - rows)[:, :500])

  return quantizer, step, params, float(step(params)[1])


def test_entries_in_7_bits_cost_little_on_real_colours(colours):
  # 64 x 64 values for 500 colours: no coarser codebook has less error to hide the rounding in. What
  # the rounding adds is less than that of a step of two grey levels.
  quantizer, step, params, error = colours
  tables = quantizer.tabulate(params)
  assert tables['entries'].max() == 127
  assert tables['entries'][:, 1].max() < 100  # the second stage codes a smaller residual
  restored = restore(quantizer, tables)
  assert step(restored)[1] < error + (2 / 255) ** 2 / 12


def test_training_from_bad_codebooks_reaches_the_error_of_kmeans(colours):
  # Averages and revival together: at first no entry is in use and all stand on black.
  _, step, params, error = colours
  state = jax.tree.map(jnp.zeros_like, params)
  for _ in range(100):
    state, reached = step(state)
  assert reached < 1.5 * error
  assert np.mean(np.asarray(state.counts) > 0.5) > 0.95


def test_unused_entries_do_not_widen_the_tables():
  books = codebook([0.25, 500.0, 0.75], [3.0, 0.01, 2.0])
  quantizer = vector.residual(stages=1, entries=3, num_columns=1)
  tables = quantizer.tabulate(jax.tree.map(lambda leaf: leaf[None], books))
  np.testing.assert_array_equal(tables['entries'], [[[[0], [127], [127]]]])
  restored = restore(quantizer, tables).entries[0, 0, :, 0]
  np.testing.assert_allclose(restored, [0.25, 0.75, 0.75], rtol=1e-3)
  # The count that one member leaves in one step is enough to be kept.
  books = codebook([0.25, 500.0, 0.75], [3.0, 0.2, 2.0])
  tables = quantizer.tabulate(jax.tree.map(lambda leaf: leaf[None], books))
  np.testing.assert_allclose(restore(quantizer, tables).entries[0, 0, 2, 0], 500, rtol=1e-3)


def test_entries_are_stored_sorted_and_once():
  books = codebook([0.5, -1.0, 2.0, 0.5], [1.0, 1.0, 1.0, 1.0])
  quantizer = vector.residual(stages=1, entries=4, num_columns=1)
  tables = quantizer.tabulate(jax.tree.map(lambda leaf: leaf[None], books))
  assert tables['entries'][0, 0, :, 0].tolist() == [0, 64, 127, 127]  # sorted, the last repeated
  nobody = codebook([0.5, -1.0], [0.0, 0.0])
  quantizer = vector.residual(stages=1, entries=2, num_columns=1)
  tables = quantizer.tabulate(jax.tree.map(lambda leaf: leaf[None], nobody))
  assert not tables['entries'].any()


def test_tables_hold_any_codebook():
  quantizer = vector.residual(stages=1, entries=2, num_columns=1)
  for entries in ([1e9, -1e9], [0.0, 1e-30], [0.7, 0.7]):
    books = jax.tree.map(lambda leaf: leaf[None], codebook(entries, [1.0, 1.0]))
    tables = quantizer.tabulate(books)
    restored = restore(quantizer, tables)
    assert_finite(restored)
    for key, table in quantizer.tabulate(restored).items():
      np.testing.assert_array_equal(table, tables[key])


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='levels'):
    uniform.uniform(levels=1)
  with pytest.raises(ValueError, match='num_columns'):
    uniform.uniform(num_columns=0)
  for kwargs in ({'stages': 0}, {'entries': 0}, {'decay': 1.0}, {'commitment': -1.0}):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
      vector.residual(**kwargs)
  rows = jnp.zeros((4, 2))
  with pytest.raises(ValueError, match='rows must have 3 columns'):
    vector.residual().init(jax.random.key(0), rows, jnp.ones(4, bool), rows)
