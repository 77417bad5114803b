"""What the public functions refuse, and that the message says what to do instead."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cgvq_jax as cg
from cgvq_jax import inputs
from cgvq_jax.fit.settings import check_settings

IMAGE = np.linspace(0, 1, 6 * 5 * 3, dtype=np.float32).reshape(6, 5, 3)
BYTES8 = np.uint8(255 * IMAGE)


def changed(value):
  image = IMAGE.copy()
  image[0, 0, 0] = value
  return image


@pytest.mark.parametrize(
  'image',
  [
    IMAGE,
    IMAGE.astype(np.float64),
    IMAGE.astype(np.float16),
    jnp.asarray(IMAGE),
    jnp.asarray(IMAGE, jnp.bfloat16),
    IMAGE[..., :1],
    IMAGE[::2, ::-1],
  ],
)
def test_images_of_any_size_of_numbers_are_taken(image):
  checked = inputs.checked_image(image)
  assert isinstance(checked, np.ndarray) and checked.dtype == np.float32
  np.testing.assert_array_equal(checked, np.asarray(image).astype(np.float32))


@pytest.mark.parametrize(
  ('image', 'error', 'message'),
  [
    (IMAGE.tolist(), TypeError, 'wanted an array [H, W, C] of floating-point .* got list: np.'),
    (memoryview(IMAGE), TypeError, 'got memoryview: np.asarray(image) of'),
    (IMAGE.tobytes(), TypeError, 'got bytes'),
    (None, TypeError, 'got NoneType'),
    (Image.fromarray(BYTES8), TypeError, 'got Image: np.asarray(image) / 255'),
    ('photo.png', TypeError, 'got str: cg.images.load(path).pixels'),
    (Path('photo.png'), TypeError, 'got PosixPath: cg.images.load(path).pixels'),
    (cg.images.LoadedImage(IMAGE, ()), TypeError, 'got LoadedImage: take its .pixels'),
    (BYTES8, ValueError, 'wanted floating-point values in 0..1, got uint8: divide by 255'),
    (np.uint16(BYTES8), ValueError, 'got uint16: divide by 65535'),
    (np.int32(BYTES8), ValueError, 'wanted floating-point values in 0..1, got int32'),
    (IMAGE > 0.5, ValueError, 'wanted floating-point values in 0..1, got bool'),
    (IMAGE.astype(complex), ValueError, 'wanted floating-point values in 0..1, got complex128'),
    (IMAGE.astype(object), ValueError, 'wanted floating-point values in 0..1, got object'),
    (255 * IMAGE, ValueError, 'wanted finite values in 0..1, got 0 to 255: divide by 255'),
    (changed(-0.25), ValueError, 'wanted finite values in 0..1, got -0.25 to 1'),
    (changed(1.5), ValueError, 'wanted finite values in 0..1, got 0.0112'),
    (changed(np.nan), ValueError, 'wanted finite values in 0..1, got nan'),
    (changed(np.inf), ValueError, 'wanted finite values in 0..1, got 0.0112.* to inf'),
    (IMAGE[..., 0], ValueError, 'got (6, 5): add the axis of the channel, image[..., None]'),
    (IMAGE[None], ValueError, 'shape [H, W, C] with sides of 1 to 65535 px, got (1, 6, 5, 3)'),
    (IMAGE[:0], ValueError, 'with sides of 1 to 65535 px, got (0, 5, 3)'),
    (
      IMAGE.transpose(2, 0, 1),
      ValueError,
      'with 1, 3 or 4 channels, got (3, 6, 5): move the channels to the end, image.transpose(1, 2,',
    ),
    (IMAGE[..., :2], ValueError, 'wanted shape [H, W, C] with 1, 3 or 4 channels, got (6, 5, 2)'),
  ],
)  # fmt: skip
def test_what_is_no_image_is_refused(image, error, message):
  with pytest.raises(error, match='image: .*' + re.escape(message).replace(r'\.\*', '.*')):
    inputs.checked_image(image)


@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ('cgvq_rd', "got a name: cg.methods.make('cgvq_rd', 3)"),
    (cg.methods.cgvq_rd, 'got the function cgvq_rd: call it, cgvq_rd(channels=3)'),
    (cg.methods.ABLATIONS['rd_rgb_axes'], 'got the function partial: call it'),
    (cg.Method, 'got the function Method: call it'),
    (IMAGE, 'got ndarray'),
    (None, 'got NoneType'),
    ({'quality': 50}, 'got dict'),
  ],
)
def test_what_is_no_method_is_refused(method, message):
  wanted = r'method: wanted a method such as cg.methods.cgvq_rd\(channels=3\), '
  with pytest.raises(TypeError, match=wanted + re.escape(message)):
    inputs.check_method(method, 3)


def test_a_method_of_other_channels_says_how_it_is_made():
  inputs.check_method(cg.methods.cgvq_rd(), 1)
  with pytest.raises(ValueError, match=r'color quantized in 1 columns .*: make the .* channels=1$'):
    inputs.check_method(cg.methods.cgvq(), 1)


@pytest.mark.parametrize(
  ('settings', 'error', 'message'),
  [
    ({'steps': 3}, TypeError, r'settings: wanted cg.FitSettings.*, got dict: cg.FitSettings\(\*\*'),
    ('fast', TypeError, r'got str: cg.PRESETS\[name\]'),
    (3, TypeError, r'settings: wanted cg.FitSettings\(steps=..., ...\), got int$'),
    (cg.FitSettings(steps='3'), ValueError, "^steps: wanted a whole number, got '3'"),
    (cg.FitSettings(steps=True), ValueError, '^steps: wanted a whole number, got True'),
    (cg.FitSettings(finetune_steps=3.0), ValueError, '^finetune_steps: wanted a whole .* got 3.0'),
    (cg.FitSettings(finetune_steps=0), ValueError, '^finetune_steps: wanted 1 or more, got 0'),
    (cg.FitSettings(seed=None), ValueError, '^seed: wanted a whole number, got None'),
    (cg.FitSettings(seed=2**32), ValueError, '^seed: wanted 0 to 4294967295, got 4294967296'),
    (cg.FitSettings(loss=3), ValueError, '^loss: wanted a name or a function, got 3'),
    (cg.FitSettings(initializer=None), ValueError, '^initializer: wanted a name or a function'),
  ],
)
def test_wrong_settings_are_named(settings, error, message):
  with pytest.raises(error, match=message):
    check_settings(settings)


def test_numbers_of_numpy_are_settings():
  check_settings(cg.FitSettings(steps=np.int64(3), seed=np.uint8(1)))  # type: ignore


@pytest.mark.parametrize('quality', [-5, 0.5, 101, np.nan, np.inf, '50', None, True, 50j, [50]])
def test_impossible_qualities(quality):
  with pytest.raises(ValueError, match='quality: wanted 1 to 100, got'):
    cg.methods.cgvq_rd(quality=quality)


@pytest.mark.parametrize('number', [0, -1, 2**22 + 1, 2.5, '60', True, np.nan])
@pytest.mark.parametrize('make', [cg.methods.cgvq_rd, cg.methods.gi])
def test_impossible_numbers_of_gaussians(make, number):
  with pytest.raises(ValueError, match=r'num_gaussians: wanted (1 to 4194304|a whole number), got'):
    make(num_gaussians=number).check(3)


def test_qualities_of_numpy_are_qualities():
  same = cg.methods.cgvq_rd(quality=50)
  for number in (np.float64(50), np.float32(50), np.int64(50), np.uint8(50)):
    assert cg.methods.cgvq_rd(quality=number) == same


@pytest.mark.parametrize(
  ('hooks', 'message'),
  [
    (print, r'hooks: wanted cg.Hooks\(resume=..., on_block=...\), got builtin'),
    ((), 'got tuple'),
    (cg.Hooks(resume=3), 'hooks: wanted a function resume, got int'),
    (cg.Hooks(on_block=None), 'hooks: wanted a function on_block, got NoneType'),
  ],
)
def test_wrong_hooks_are_named(hooks, message):
  with pytest.raises(TypeError, match=message):
    inputs.check_hooks(hooks)


def test_any_buffer_is_bytes():
  for buffer in (b'abc', bytearray(b'abc'), memoryview(b'abc'), np.frombuffer(b'abc', np.uint8)):
    assert inputs.checked_bytes(buffer) == b'abc'


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ('x.cgvq', r'got str: Path\(path\).read_bytes\(\)'),
    (Path('x.cgvq'), r'got PosixPath: Path\(path\).read_bytes\(\)'),
    ([1, 2], 'got list'),
    (None, 'got NoneType'),
  ],
)
def test_what_is_no_bytes_is_refused(data, message):
  with pytest.raises(TypeError, match=f'data: wanted the bytes of a file, {message}'):
    inputs.checked_bytes(data)


def test_a_fit_checks_what_it_is_given():
  image = np.zeros((4, 4, 3), np.float32)
  with pytest.raises(ValueError, match="num_gaussians: wanted a whole number, got '60'"):
    cg.fit_image(image, '60')
  with pytest.raises(TypeError, match='image: wanted'):
    cg.fit_image([[0.0]], 3)
  with pytest.raises(TypeError, match='settings: wanted'):
    cg.fit_image(image, 3, {'steps': 3})
