"""Losses against values by hand, their gradients, and the features that one of them compares."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from cgvq_jax.fit import losses

RNG = np.random.default_rng(0)
SHAPE = (24, 20, 3)
IMAGE, TARGET = RNG.random((2, *SHAPE)).astype(np.float32)
LOSSES = {f.__name__: f for f in (losses.l2, losses.l1, losses.l1_ssim, losses.feature)}

each_loss = pytest.mark.parametrize('name', list(LOSSES))


@functools.lru_cache
def program(name):
  return jax.jit(jax.value_and_grad(LOSSES[name]))


def test_l2_and_l1_by_hand():
  image, target = jnp.zeros((1, 2, 3)), jnp.array([[[0, 0, 0.5], [-1, 0, 2]]])
  assert losses.l2(image, target) == pytest.approx((0.25 + 1 + 4) / 6)
  assert losses.l1(image, target) == pytest.approx((0.5 + 1 + 2) / 6)


def test_ssim_of_flat_images_by_hand():
  # Without variance only the means remain: (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2.
  a, b = 0.8, 0.3
  want = 1 - (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
  assert losses.ssim(jnp.full(SHAPE, a), jnp.full(SHAPE, b)) == pytest.approx(want, abs=1e-4)


def test_ssim_is_scikit_images_within_the_borders():
  options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
  _, full = structural_similarity(
    IMAGE, TARGET, data_range=1, channel_axis=-1, full=True, **options
  )
  want = 1 - full[5:-5, 5:-5].mean()  # where the window of 11 px lies inside the image
  assert losses.ssim(jnp.asarray(IMAGE), jnp.asarray(TARGET)) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_l1_ssim_is_a_mean_of_the_two(share):
  want = float((1 - share) * losses.l1(IMAGE, TARGET) + share * losses.ssim(IMAGE, TARGET))
  assert losses.l1_ssim(IMAGE, TARGET, ssim_share=share) == pytest.approx(want, rel=1e-5)


@each_loss
def test_zero_at_equality_and_positive_elsewhere(name):
  assert program(name)(IMAGE, IMAGE)[0] == pytest.approx(0, abs=1e-6)
  assert program(name)(IMAGE, TARGET)[0] > 0.05


@each_loss
@pytest.mark.parametrize('case', ['noise', 'equal', 'flat', 'black', 'far out of range'])
def test_gradient_is_finite_and_a_step_against_it_reduces_the_loss(name, case):
  flat = np.full(SHAPE, 0.5, np.float32)
  image, target = {
    'noise': (IMAGE, TARGET),
    'equal': (IMAGE, IMAGE),
    'flat': (flat, flat),
    'black': (0 * flat, flat),
    'far out of range': (100 * IMAGE - 50, TARGET),  # as a rendered image may be
  }[case]
  value, gradient = program(name)(image, target)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))
  if case in ('noise', 'black'):
    step = 1e-3 / np.abs(gradient).max()
    assert program(name)(image - step * gradient, target)[0] < value


@pytest.mark.parametrize('name', ['l1_ssim', 'feature'])
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 3, 3), (10, 4, 4), (1, 50, 1)])
def test_images_smaller_than_the_windows(name, shape):
  image, target = RNG.random((2, *shape)).astype(np.float32)
  value, gradient = program(name)(image, target)
  assert value > 0 and np.all(np.isfinite(gradient)) and np.any(gradient)
  assert program(name)(target, target)[0] == pytest.approx(0, abs=1e-6)


# --- oriented filters ---


def test_oriented_features_have_one_array_a_scale():
  shapes = [f.shape for f in losses.oriented_features(jnp.asarray(IMAGE))]
  assert shapes == [(3, 24, 20, 4), (3, 12, 10, 4), (3, 6, 5, 4)]
  assert len(losses.oriented_features(jnp.asarray(IMAGE), scales=1)) == 1
  # No smaller scale where a side is a single pixel.
  assert [f.shape for f in losses.oriented_features(jnp.zeros((2, 9, 1)))] == [
    (1, 2, 9, 4),
    (1, 1, 4, 4),
  ]


def test_flat_images_have_no_features():
  for response in losses.oriented_features(jnp.full((40, 40, 3), 0.7)):
    np.testing.assert_allclose(response, 0, atol=1e-6)


@pytest.mark.parametrize(
  ('direction', 'orientation'), [((1, 0), 0), ((1, 1), 1), ((0, 1), 2), ((-1, 1), 3)]
)
def test_an_edge_has_its_largest_response_in_its_own_direction(direction, orientation):
  # Orientation o is the derivative along the angle o pi / 4 from x towards y, which is downwards.
  y, x = np.mgrid[:33, :33] - 16.0
  step = (direction[0] * x + direction[1] * y > 0).astype(np.float32)[..., None]
  fine = np.asarray(losses.oriented_features(jnp.asarray(step))[0])[0, 16, 16]
  assert np.argmax(np.abs(fine)) == orientation
  across = np.abs(fine[(orientation + 2) % 4])
  assert across < 0.2 * np.abs(fine[orientation])


def test_feature_is_the_posters_mean():
  got = [losses.feature(IMAGE, TARGET, image_share=share) for share in (0.0, 0.7, 1.0)]
  pairs = zip(
    losses.oriented_features(jnp.asarray(IMAGE)),
    losses.oriented_features(jnp.asarray(TARGET)),
    strict=True,
  )
  features = np.mean([np.mean(np.abs(a - b)) for a, b in pairs])
  image = np.mean(np.abs(IMAGE - TARGET))
  np.testing.assert_allclose(got, [features, 0.7 * image + 0.3 * features, image], rtol=1e-5)


def test_feature_takes_other_features():
  value = losses.feature(IMAGE, TARGET, features=lambda image: [3 * image], image_share=0.5)
  assert value == pytest.approx(2 * np.mean(np.abs(IMAGE - TARGET)), rel=1e-5)


# --- VGG ---


@pytest.fixture(scope='module')
def weights():
  """VGG-16's first shapes, with random weights of the usual variance."""
  rng = np.random.default_rng(1)
  sizes = {'1_1': (3, 64), '1_2': (64, 64), '2_1': (64, 128), '2_2': (128, 128)}
  sizes |= {'3_1': (128, 256), '3_2': (256, 256), '3_3': (256, 256)}
  arrays = {}
  for layer, (inputs, outputs) in sizes.items():
    kernel = rng.standard_normal((3, 3, inputs, outputs)) * np.sqrt(2 / (9 * inputs))
    arrays[f'conv{layer}/kernel'] = kernel.astype(np.float32)
    arrays[f'conv{layer}/bias'] = rng.uniform(-0.1, 0.1, outputs).astype(np.float32)
  return arrays


@pytest.fixture(scope='module')
def vgg(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp('vgg') / 'weights.npz'
  np.savez(path, **weights)
  return losses.vgg_features(path)


def test_vgg_has_three_stages(vgg):
  stages = jax.jit(vgg)(jnp.asarray(IMAGE[:17, :10]))
  assert [f.shape for f in stages] == [(1, 17, 10, 64), (1, 9, 5, 128), (1, 5, 3, 256)]
  assert all(np.all(np.asarray(f) >= 0) and np.any(np.asarray(f) > 0) for f in stages)


def test_vgg_first_layers_by_hand(vgg, weights):
  pixels = (IMAGE[:5, :5] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]

  def convolved(x, name):  # without padding
    kernel, bias = weights[f'{name}/kernel'], weights[f'{name}/bias']
    rows, columns = x.shape[0] - 2, x.shape[1] - 2
    patches = np.stack([x[i : i + rows, j : j + columns] for i, j in np.ndindex(3, 3)], axis=2)
    return np.maximum(
      np.einsum('ijpc,pco->ijo', patches, kernel.reshape(9, *kernel.shape[2:])) + bias, 0
    )

  want = convolved(convolved(pixels, 'conv1_1'), 'conv1_2')
  got = vgg(jnp.asarray(IMAGE[:5, :5]))[0]
  np.testing.assert_allclose(got[0, 2, 2], want[0, 0], rtol=1e-3, atol=1e-4)


def test_vgg_repeats_gray_and_leaves_alpha_out(vgg):
  program = jax.jit(vgg)
  gray = IMAGE[:8, :8, :1]
  for gray_stage, stage in zip(program(gray), program(np.repeat(gray, 3, -1)), strict=True):
    np.testing.assert_allclose(gray_stage, stage, atol=1e-5)
  with_alpha = np.concatenate([IMAGE[:8, :8], RNG.random((8, 8, 1))], axis=-1, dtype=np.float32)
  for alpha_stage, stage in zip(program(with_alpha), program(IMAGE[:8, :8]), strict=True):
    np.testing.assert_allclose(alpha_stage, stage, atol=1e-5)


def test_vgg_as_a_loss(vgg):
  loss = jax.jit(jax.value_and_grad(functools.partial(losses.feature, features=vgg)))
  value, gradient = loss(IMAGE[:8, :8], TARGET[:8, :8])
  assert value > 0 and np.all(np.isfinite(gradient)) and np.any(gradient)
  assert loss(IMAGE[:8, :8], IMAGE[:8, :8])[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'conv2_1/bias': None}, r'conv2_1/bias: wanted shape \(128,\), got nothing'),
    (
      {'conv3_3/kernel': np.zeros((3, 3, 256, 9))},
      r'conv3_3/kernel: wanted shape \(3, 3, 256, 256\), got \(3, 3, 256, 9\)',
    ),
  ],
)
def test_vgg_errors_name_the_wrong_array(weights, tmp_path, change, message):
  arrays = {name: array for name, array in (weights | change).items() if array is not None}
  np.savez(tmp_path / 'wrong.npz', **arrays)
  with pytest.raises(ValueError, match=rf'wrong\.npz: {message}'):
    losses.vgg_features(tmp_path / 'wrong.npz')


def test_vgg_without_a_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere\.npz'):
    losses.vgg_features(tmp_path / 'nowhere.npz')


def test_a_clamped_overshoot_is_no_error():
  image, target = np.array([1.5, 1.5, -0.5, -0.5, 0.25]), np.array([1.0, 0.5, 0.0, 0.5, 0.75])
  value, slope = jax.vmap(jax.value_and_grad(losses.clamped_l2.error))(image, target)
  # Beyond a white or a black target there is no error; elsewhere the slope is that at 0 or 1.
  np.testing.assert_allclose(value, [0, 0.25 + 0.5, 0, 0.25 + 0.5, 0.25], atol=1e-6)
  np.testing.assert_allclose(slope, [0, 1, 0, -1, -1], atol=1e-6)
