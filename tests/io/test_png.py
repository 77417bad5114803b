"""PNG files with ancillary chunks that say something, or are damaged."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from png_files import chunk, png_file

from cgvq_jax.io import images, png

EXIF = b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'  # orientation 6


def _load(tmp_path, data):
  (tmp_path / 'a.png').write_bytes(data)
  return images.load(tmp_path / 'a.png')


def _bad_checksum(name, body):
  return chunk(name, body)[:-1] + b'\0'


@pytest.mark.parametrize('name', [b'gAMA', b'cHRM', b'sRGB', b'iCCP', b'cICP', b'pHYs', b'eXIf'])
@pytest.mark.parametrize('after', [False, True])
def test_a_damaged_ancillary_chunk_is_ignored(tmp_path, name, after):
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  bad = _bad_checksum(name, bytes(32))
  extra = (b'', bad) if after else (bad, b'')
  loaded = _load(tmp_path, png_file(pixels, *extra))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), pixels)
  assert loaded.notes == (f'damaged {name.decode()} chunk ignored',)


@pytest.mark.parametrize(
  'bad',
  [
    chunk(b'zTXt', b'a\0\1' + bytes(9)),  # of an unknown compression
    chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(1 << 22))),  # a bomb
    chunk(b'tEXt', b''),
    chunk(b'fcTL', b'short'),
    chunk(b'abCd', b'private'),
  ],
)
def test_text_and_private_chunks_are_passed_over(tmp_path, bad):
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  loaded = _load(tmp_path, png_file(pixels, bad))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), pixels)
  assert loaded.notes == ()


def _damaged(data, name):
  """The file with another checksum of the first chunk of this name."""
  place = data.index(name)
  end = place + 4 + struct.unpack_from('>I', data, place - 4)[0]
  return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


def _with_palette(mode):
  buffer = io.BytesIO()
  Image.new('RGB', (2, 2), (9, 20, 31)).convert(mode).save(buffer, 'PNG')
  data = buffer.getvalue()
  return data if mode == 'P' else data[:33] + chunk(b'PLTE', bytes(6)) + data[33:]


@pytest.mark.parametrize('name', [b'IHDR', b'IDAT', b'PLTE'])
def test_a_damaged_critical_chunk_is_an_error(tmp_path, name):
  with pytest.raises(images.ImageError, match=rf'damaged {name.decode()} chunk'):
    _load(tmp_path, _damaged(_with_palette('P'), name))


@pytest.mark.parametrize('name', [b'PLTE', b'IEND'])
def test_a_damaged_chunk_that_the_pixels_do_not_need_is_ignored(tmp_path, name):
  loaded = _load(tmp_path, _damaged(_with_palette('RGB'), name))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels[0, 0]), [9, 20, 31])
  assert loaded.notes == (f'damaged {name.decode()} chunk ignored',)


HEX = b'\nexif\n      26\n' + EXIF.hex().encode()
XMP = b'<x tiff:Orientation="6"/>'


@pytest.mark.parametrize(
  'block',
  [
    chunk(b'eXIf', EXIF),
    chunk(b'tEXt', b'Raw profile type exif\0' + HEX),
    chunk(b'zTXt', b'Raw profile type APP1\0\0' + zlib.compress(HEX)),
    chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP),
    chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(XMP)),
  ],
)
@pytest.mark.parametrize('after', [False, True])
def test_the_orientation_is_found_wherever_it_is(tmp_path, block, after):
  pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
  loaded = _load(tmp_path, png_file(pixels, *((b'', block) if after else (block, b''))))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), np.rot90(pixels, -1))
  assert loaded.notes == ('EXIF orientation 6 applied',)


@pytest.mark.parametrize('exif', [b'garbage', EXIF[:9], EXIF[:14]])
def test_broken_exif_is_ignored(tmp_path, exif):
  pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
  loaded = _load(tmp_path, png_file(pixels, chunk(b'eXIf', exif)))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), pixels)
  assert loaded.notes == ('damaged EXIF ignored',)


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
def test_a_transparent_gray_value_is_of_the_bits_of_the_file(tmp_path, bits):
  values = np.array([[0, 1], [2, 3]]) & ((1 << bits) - 1)
  block = chunk(b'tRNS', struct.pack('>H', (1 | 1 << bits) & 0xFFFF))  # the low bits count
  loaded = _load(tmp_path, png_file(values, block, bits=bits))
  gray = values / ((1 << bits) - 1)
  np.testing.assert_allclose(loaded.pixels[..., :3], np.repeat(gray[..., None], 3, -1), atol=1e-6)
  np.testing.assert_array_equal(loaded.pixels[..., 3], values != 1)
  assert 'with a transparent colour converted to RGBA' in loaded.notes[0]


def test_a_transparent_colour_of_16_bits(tmp_path):
  values = np.array([[[65535, 257, 0], [65535, 0, 0]]])
  block = chunk(b'tRNS', struct.pack('>3H', 65535, 257, 0))
  loaded = _load(tmp_path, png_file(values, block, bits=16))
  np.testing.assert_array_equal(
    images.to_bytes8(loaded.pixels)[0], [[255, 1, 0, 0], [255, 0, 0, 255]]
  )


@pytest.mark.parametrize('body', [b'', b'\0', b'\0\0\0'])
def test_a_transparent_value_of_a_wrong_size_is_ignored(tmp_path, body):
  loaded = _load(tmp_path, png_file(np.zeros((2, 2), np.uint8), chunk(b'tRNS', body)))
  assert loaded.pixels.shape == (2, 2, 1)
  assert loaded.notes == ('damaged tRNS chunk ignored',)


def test_animations_are_read_by_their_first_picture(tmp_path):
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  animation = chunk(b'acTL', struct.pack('>II', 3, 0))
  control = chunk(b'fcTL', struct.pack('>5I2HBB', 0, 2, 2, 0, 0, 1, 10, 0, 0))
  loaded = _load(tmp_path, png_file(pixels, animation + control))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), pixels)
  assert loaded.notes == ('first of 3 frames read',)
  assert _load(tmp_path, png_file(pixels, animation, control)).notes == ('first of 4 frames read',)


def test_read_keeps_the_pixels_alone():
  data = png_file(np.zeros((2, 2), np.uint8), chunk(b'gAMA', struct.pack('>I', 45455)))
  chunks = png.read(data)
  assert chunks.data == png_file(np.zeros((2, 2), np.uint8)) and chunks.gamma == 45455
