"""Reading, rounding and writing image files, and finding data sets."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
from PIL import Image

from cgvq_jax.io import datasets, files, images

RAMP = np.linspace(0, 255, 7 * 5 * 3).round().astype(np.uint8).reshape(7, 5, 3)


def _picture(mode):
  picture = Image.fromarray(RAMP).convert(mode)
  picture.info.clear()  # Pillow attaches a profile to LAB
  return picture


def _write(path, picture, **options):
  picture.save(path, **options)
  return path


@pytest.mark.parametrize(
  ('mode', 'extension', 'channels', 'note'),
  [
    ('L', 'png', 1, None),
    ('RGB', 'png', 3, None),
    ('RGBA', 'png', 4, None),
    ('1', 'png', 1, 'black and white converted to gray'),
    ('LA', 'png', 4, 'gray with alpha converted to RGBA'),
    ('P', 'png', 3, 'palette converted to RGB'),
    ('CMYK', 'tif', 3, 'CMYK converted to RGB'),
    ('YCbCr', 'tif', 3, 'YCbCr converted to RGB'),
    ('LAB', 'tif', 3, 'LAB converted to RGB'),
  ],
)
def test_load_keeps_what_pillow_shows(tmp_path, mode, extension, channels, note):
  picture = _picture(mode)
  pixels, notes = images.load(_write(tmp_path / f'a.{extension}', picture))
  shown = picture.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels])
  assert pixels.dtype == np.float32 and pixels.shape == (7, 5, channels)
  np.testing.assert_array_equal(images.to_bytes8(pixels), np.asarray(shown).reshape(7, 5, -1))
  assert notes == ((note,) if note else ())


def test_load_hsv(tmp_path, monkeypatch):
  # No format holds HSV, so the opener is made to return it.
  path = _write(tmp_path / 'a.png', _picture('RGB'))
  monkeypatch.setattr(Image, 'open', lambda _: _with_tile(_picture('HSV')))
  pixels, notes = images.load(path)
  assert np.abs(pixels - RAMP / 255).max() < 0.03 and notes == ('HSV converted to RGB',)


def _with_tile(picture):
  picture.tile = []
  return picture


def test_load_palette_with_transparency(tmp_path):
  picture = Image.new('P', (2, 1))
  picture.putpalette([10, 20, 30, 40, 50, 60])
  picture.putdata([0, 1])
  pixels, notes = images.load(_write(tmp_path / 'a.png', picture, transparency=1))
  np.testing.assert_array_equal(images.to_bytes8(pixels)[0], [[10, 20, 30, 255], [40, 50, 60, 0]])
  assert notes == ('palette with a transparent colour converted to RGBA',)


@pytest.mark.parametrize('mode', ['L', 'RGB', '1'])
def test_load_transparent_colour(tmp_path, mode):
  black = (0, 0, 0) if mode == 'RGB' else 0
  pixels, notes = images.load(
    _write(tmp_path / 'a.png', Image.new(mode, (2, 2), black), transparency=black)
  )
  assert pixels.shape == (2, 2, 4) and (pixels == 0).all() and 'transparent' in notes[0]


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.pgm'])
def test_load_16_bit_gray_is_scaled_not_clipped(tmp_path, name):
  values = np.array([[0, 255, 256], [30000, 65534, 65535]], np.uint16)
  pixels, notes = images.load(_write(tmp_path / name, Image.fromarray(values)))
  np.testing.assert_allclose(pixels[..., 0], values / 65535, atol=1e-7)
  assert len(notes) == 1 and notes[0].endswith('bit gray read on the scale 0..65535')


def test_load_16_bit_big_endian(tmp_path):
  picture = Image.frombytes('I;16B', (2, 1), struct.pack('>HH', 1, 65535))
  pixels, _ = images.load(_write(tmp_path / 'a.tif', picture))
  np.testing.assert_allclose(pixels[0, :, 0], [1 / 65535, 1], atol=1e-7)


def test_load_16_bit_colour_notes_that_bits_are_lost(tmp_path):
  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  header = struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0)
  rows = zlib.compress(b'\0' + bytes([0xFF, 0xFF, 0x80, 0, 0, 0]))
  path = tmp_path / 'a.png'
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
  )
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(images.to_bytes8(pixels)[0, 0], [255, 128, 0])
  assert notes == ('16-bit colour reduced to 8 bits',)


@pytest.mark.parametrize(('high', 'limit'), [(1.0, 1), (200.0, 255)])
def test_load_floating_point(tmp_path, high, limit):
  values = np.array([[0.0, high]], np.float32)
  pixels, notes = images.load(_write(tmp_path / 'a.tif', Image.fromarray(values)))
  np.testing.assert_allclose(pixels[..., 0], values / limit)
  assert notes == (f'floating-point gray read on the scale 0..{limit}',)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, -0.5, 256.0])
def test_load_refuses_floats_out_of_range(tmp_path, bad):
  path = _write(tmp_path / 'a.tif', Image.fromarray(np.array([[0.5, bad]], np.float32)))
  with pytest.raises(images.ImageError, match=r'a\.tif: wanted gray values in'):
    images.load(path)


def test_load_refuses_wide_integers(tmp_path):
  path = _write(tmp_path / 'a.tif', Image.new('I', (1, 1), 65536))
  with pytest.raises(images.ImageError, match=r'0\.\.65535, got 65536'):
    images.load(path)


def test_load_applies_exif_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rows of the file are columns of the picture
  pixels, notes = images.load(_write(tmp_path / 'a.png', _picture('RGB'), exif=exif))
  np.testing.assert_array_equal(images.to_bytes8(pixels), np.rot90(RAMP, -1))
  assert notes == ('EXIF orientation 6 applied',)


def test_load_reads_the_first_frame(tmp_path):
  frames = [Image.new('RGB', (4, 4), color) for color in ('red', 'lime', 'blue')]
  path = _write(tmp_path / 'a.gif', frames[0], save_all=True, append_images=frames[1:])
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(pixels[0, 0], [1, 0, 0])
  assert notes[0] == 'first of 3 frames read'


def _rgb16(extension):
  """A file of one row of 16-bit colours: 65535, 32896 and 0."""
  samples = np.array([[65535, 32896, 0]], '>u2')
  if extension == 'ppm':
    return b'P6 1 1 65535\n' + samples.tobytes()
  if extension == 'sgi':
    header = struct.pack('>HBBHHHH', 474, 0, 2, 3, 1, 1, 3)
    return header.ljust(512, b'\0') + samples.tobytes()
  tags = {
    256: (3, 1, 1 << 16), 257: (3, 1, 1 << 16), 258: (3, 3, 122), 259: (3, 1, 1 << 16),
    262: (3, 1, 2 << 16), 273: (4, 1, 128), 277: (3, 1, 3 << 16), 278: (3, 1, 1 << 16),
    279: (4, 1, 6),
  }  # fmt: skip
  entries = b''.join(struct.pack('>HHII', tag, *rest) for tag, rest in tags.items())
  bits = struct.pack('>3H', 16, 16, 16)
  return b'MM\0*\0\0\0\x08\0\x09' + entries + bytes(4) + bits + samples.tobytes()


@pytest.mark.parametrize('extension', ['ppm', 'sgi', 'tif'])
def test_load_notes_that_bits_are_lost_in_every_format(tmp_path, extension):
  path = tmp_path / f'a.{extension}'
  path.write_bytes(_rgb16(extension))
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(images.to_bytes8(pixels)[0, 0], [255, 128, 0])
  assert notes == ('16-bit colour reduced to 8 bits',)


def test_load_ppm_of_8_bits_has_no_note(tmp_path):
  assert images.load(_write(tmp_path / 'a.ppm', _picture('RGB'))).notes == ()


def _jpeg(*segments):
  """A JPEG file with these application segments, (marker, body)."""
  buffer = io.BytesIO()
  Image.new('RGB', (16, 8), (60, 60, 60)).save(buffer, 'JPEG')
  extra = b''.join(
    struct.pack('>BBH', 0xFF, marker, len(body) + 2) + body for marker, body in segments
  )
  return buffer.getvalue()[:2] + extra + buffer.getvalue()[2:]


def _exif():
  exif = Image.Exif()
  exif[0x0112] = 6
  exif[0x010F] = 'maker'
  return exif


EXIF_SEGMENT = 0xE1, b'Exif\0\0' + _exif().tobytes()[6:]


@pytest.mark.parametrize(
  'segment',
  [
    (0xE0, b'JFIF'),
    (0xE2, b'ICC_PROFILE\0'),
    (0xE2, b'MPF\0MM\0*\0\0\0\x08\0\1\xb0\0\0\7'),
    (0xED, b'Photoshop 3.0\x008BIM\x03\xed'),
    (0xEE, b'Adobe\0'),
  ],
)
def test_load_jpeg_with_a_damaged_segment(tmp_path, segment):
  (tmp_path / 'a.jpg').write_bytes(_jpeg(segment, EXIF_SEGMENT))
  pixels, notes = images.load(tmp_path / 'a.jpg')
  assert pixels.shape == (16, 8, 3) and (images.to_bytes8(pixels) == 60).all()
  assert set(notes) <= {'damaged metadata ignored', 'EXIF orientation 6 applied'}
  assert notes[-1] == 'EXIF orientation 6 applied'


def test_load_jpeg_with_half_of_a_profile(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(_jpeg((0xE2, b'ICC_PROFILE\0\1\2half')))
  pixels, notes = images.load(tmp_path / 'a.jpg')
  assert (images.to_bytes8(pixels) == 60).all()
  assert notes == ('embedded colour profile not applied: it is damaged',)


@pytest.mark.parametrize('extension', ['jpg', 'webp', 'avif'])
def test_load_with_broken_exif(tmp_path, extension):
  path = tmp_path / f'a.{extension}'
  Image.new('RGB', (16, 8), (60, 60, 60)).save(path, exif=_exif(), quality=95)
  data = path.read_bytes()
  start = max(data.find(b'MM\0*'), data.find(b'II*\0'))
  path.write_bytes(data[:start] + b'garbage!' + data[start + 8 :])
  pixels, notes = images.load(path)
  assert np.abs(255 * pixels - 60).max() <= 2
  # AVIF holds the orientation outside of EXIF too.
  assert notes in [
    ('damaged EXIF ignored',),
    ('damaged metadata ignored', 'EXIF orientation 6 applied'),
  ]
  assert pixels.shape == ((16, 8, 3) if extension == 'avif' else (8, 16, 3))


def test_load_webp_that_ends_within_its_metadata(tmp_path):
  path = _write(tmp_path / 'a.webp', _picture('RGB'), exif=_exif(), lossless=True)
  path.write_bytes(path.read_bytes()[:-9])
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(images.to_bytes8(pixels), RAMP)
  assert notes == ('damaged metadata ignored',)


def test_load_tiff_with_a_damaged_tag(tmp_path):
  path = _write(tmp_path / 'a.tif', _picture('RGB'), exif=_exif())
  data = path.read_bytes()
  place = data.index(struct.pack('<HHI', 271, 2, 6)) + 8  # Make: its text is now beyond the file
  path.write_bytes(data[:place] + struct.pack('<I', 1 << 20) + data[place + 4 :])
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(images.to_bytes8(pixels), np.rot90(RAMP, -1))
  assert notes == ('damaged metadata ignored', 'EXIF orientation 6 applied')


@pytest.mark.parametrize('extension', ['jpg', 'webp', 'tif', 'avif', 'gif', 'bmp'])
def test_load_refuses_truncated_pixels_of_every_format(tmp_path, extension):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  path = _write(tmp_path / f'a.{extension}', Image.fromarray(noise))
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(images.ImageError, match=rf'a\.{extension}: wanted'):
    images.load(path)


def test_load_reads_the_first_frame_where_another_is_damaged(tmp_path):
  frames = [Image.new('RGB', (4, 4), color) for color in ('red', 'lime', 'blue')]
  path = _write(tmp_path / 'a.gif', frames[0], save_all=True, append_images=frames[1:])
  data = path.read_bytes()
  cut = data.rindex(b'\x2c')  # the last image descriptor
  path.write_bytes(data[: cut + 3])
  pixels, notes = images.load(path)
  np.testing.assert_array_equal(pixels[0, 0], [1, 0, 0])
  assert 'frame' in notes[0]


def test_load_keeps_the_warnings_of_pillow_to_itself(tmp_path, recwarn):
  (tmp_path / 'a.jpg').write_bytes(_jpeg((0xE1, EXIF_SEGMENT[1][:20])))
  assert images.load(tmp_path / 'a.jpg').notes == ('damaged EXIF ignored',)
  assert not recwarn.list


@contextlib.contextmanager
def _pipe(path, write):
  """A named pipe that another thread writes to."""
  os.mkfifo(path)
  thread = threading.Thread(target=write)
  thread.start()
  yield
  thread.join()


def test_load_reads_a_pipe(tmp_path):
  data = _write(tmp_path / 'a.png', _picture('RGB')).read_bytes()
  pipe = tmp_path / 'pipe'
  with _pipe(pipe, lambda: pipe.write_bytes(data)):
    pixels, notes = images.load(pipe)
  np.testing.assert_array_equal(images.to_bytes8(pixels), RAMP)
  assert notes == ()


@pytest.mark.parametrize(('data', 'got'), [(b'', 'an empty file'), (bytes(999), 'more than 500')])
def test_load_refuses_a_pipe_of_nothing_and_of_too_much(tmp_path, monkeypatch, data, got):
  monkeypatch.setattr(images, '_MAX_BYTES', 500)
  pipe = tmp_path / 'pipe'
  with (
    _pipe(pipe, lambda: pipe.write_bytes(data)),
    pytest.raises(images.ImageError, match=rf'pipe: wanted .*got .*{got}'),
  ):
    images.load(pipe)


def test_load_refuses_devices_and_sockets(tmp_path, monkeypatch):
  with pytest.raises(images.ImageError, match='/dev/zero: wanted an image file, got a device'):
    images.load('/dev/zero')
  monkeypatch.chdir(tmp_path)  # a socket's path has to be short
  with socket.socket(socket.AF_UNIX) as server:
    server.bind('s')
    with pytest.raises(images.ImageError, match='got a socket'):
      images.load('s')


@pytest.mark.parametrize('size', [(1, 1), (1, 3), (5, 1)])
def test_load_tiny(tmp_path, size):
  pixels, _ = images.load(_write(tmp_path / 'a.png', Image.new('L', size, 51)))
  assert pixels.shape == (size[1], size[0], 1) and np.allclose(pixels, 0.2)


def _truncated():
  buffer = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(buffer, 'PNG')
  return buffer.getvalue()[:3000]


def _bomb(side):
  buffer = io.BytesIO()
  Image.new('1', (4, 4)).save(buffer, 'PNG')
  data = bytearray(buffer.getvalue())
  data[16:24] = struct.pack('>II', side, side)
  data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  return bytes(data)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize(
  ('data', 'got'),
  [
    (b'', 'an empty file'),
    (b'just some text', 'unknown kind'),
    (_truncated(), 'truncated'),
    (_bomb(8193), '8193 x 8193'),
    (_bomb(9999), '9999 x 9999'),
    (_bomb(60000), 'DecompressionBombError'),
  ],
)
def test_load_refuses_bad_files(tmp_path, data, got):
  path = tmp_path / 'bad.png'
  path.write_bytes(data)
  with pytest.raises(images.ImageError, match=rf'bad\.png: wanted .*got .*{got}'):
    images.load(path)


def test_load_refuses_what_is_not_a_file(tmp_path):
  with pytest.raises(images.ImageError, match='nothing: wanted an image file, got no such file'):
    images.load(tmp_path / 'nothing')
  with pytest.raises(images.ImageError, match='got a folder'):
    images.load(tmp_path)


def test_load_refuses_an_unreadable_file(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.png', _picture('L'))

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')  # the file's mode does not stop a superuser

  monkeypatch.setattr(Image, 'open', refuse)
  with pytest.raises(images.ImageError, match=r'a\.png: .*Permission denied'):
    images.load(path)


def test_to_bytes8_clamps_and_rounds():
  pixels = np.array(
    [-np.inf, -1, 0, 0.49 / 255, 0.51 / 255, 254.51 / 255, 1, 7, np.inf], np.float32
  )
  np.testing.assert_array_equal(images.to_bytes8(pixels), [0, 0, 0, 0, 1, 255, 255, 255, 255])
  every = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(images.to_bytes8(every.astype(np.float32) / 255), every)


@pytest.mark.parametrize('bad', [np.array([0.5, np.nan]), np.arange(3), np.array([True])])
def test_to_bytes8_refuses(bad):
  with pytest.raises(ValueError, match='pixels: wanted'):
    images.to_bytes8(bad)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_save_and_load_agree(tmp_path, channels):
  pixels = np.random.default_rng(0).random((5, 3, channels), np.float32)
  images.save(tmp_path / 'a.png', pixels)
  read = images.load(tmp_path / 'a.png').pixels
  np.testing.assert_array_equal(images.to_bytes8(read), images.to_bytes8(pixels))


def test_save_follows_the_extension(tmp_path):
  images.save(tmp_path / 'a.WEBP', np.zeros((4, 4, 3), np.float32))
  with Image.open(tmp_path / 'a.WEBP') as image:
    assert image.format == 'WEBP'


@pytest.mark.parametrize(
  ('name', 'channels', 'notes'),
  [
    ('a.ppm', 4, ['RGBA written as RGB, without alpha']),
    ('a.bmp', 4, ['RGBA written as RGB, without alpha']),
    ('a.gif', 4, ['RGBA written as a palette, alpha as transparent or opaque']),
    ('a.gif', 3, ['RGB written as a palette']),
    ('a.ico', 3, ['300 x 20 px written as 16 x 1']),
    *[(name, channels, []) for name in ('a.bmp', 'a.pdf', 'a.webp') for channels in (1, 3)],
    *[(name, 4, []) for name in ('a.png', 'a.tif', 'a.webp', 'a.avif')],
  ],
)
def test_save_says_what_the_format_does_not_keep(tmp_path, name, channels, notes):
  pixels = np.random.default_rng(0).random((20, 300, channels), np.float32)
  pixels[:, :150, 3:] = 0
  assert images.save(tmp_path / name, pixels) == tuple(notes)
  if notes and 'without alpha' in notes[0]:
    assert images.load(tmp_path / name).pixels.shape == (20, 300, 3)


def test_notes_on_a_picture_that_pillow_takes_for_a_bomb(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4)
  pixels = np.zeros((9, 9, 4), np.float32)
  assert images.save(tmp_path / 'a.ppm', pixels) == ('RGBA written as RGB, without alpha',)


@pytest.mark.parametrize('name', ['a', 'a.xyz', 'a.psd'])
def test_save_refuses_unknown_extension(tmp_path, name):
  with pytest.raises(images.ImageError, match='wanted a name that ends in'):
    images.save(tmp_path / name, np.zeros((4, 4, 3), np.float32))
  assert list(tmp_path.iterdir()) == []


def test_save_leaves_nothing_behind_on_failure(tmp_path):
  old = b'the old picture'
  (tmp_path / 'a.jpg').write_bytes(old)
  with pytest.raises(images.ImageError, match=r'a\.jpg: wanted to write 4x4x4'):
    images.save(tmp_path / 'a.jpg', np.zeros((4, 4, 4), np.float32))
  (tmp_path / 'folder.png').mkdir()
  with pytest.raises(images.ImageError, match=r'folder\.png'):
    images.save(tmp_path / 'folder.png', np.zeros((4, 4, 3), np.float32))
  with pytest.raises(images.ImageError, match='absent'):
    images.save(tmp_path / 'absent' / 'a.png', np.zeros((4, 4, 3), np.float32))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.jpg', 'folder.png']
  assert (tmp_path / 'a.jpg').read_bytes() == old


@pytest.mark.parametrize('shape', [(4, 4), (4, 4, 2), (0, 4, 3)])
def test_save_refuses_bad_shape(tmp_path, shape):
  with pytest.raises(ValueError, match=r'wanted \[H, W, C\]'):
    images.save(tmp_path / 'a.png', np.zeros(shape, np.float32))


def test_write_atomically_keeps_the_old_file_when_interrupted(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.write_atomically(path, b'old')

  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(images.os, 'replace', interrupt)
  with pytest.raises(KeyboardInterrupt):
    files.write_atomically(path, b'new')
  assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def _fill(folder, stems, extension='png'):
  folder.mkdir(parents=True, exist_ok=True)
  for stem in stems:
    Image.new('L', (1, 1)).save(folder / f'{stem}.{extension}')
  return folder


KODAK = [f'kodim{number:02d}' for number in range(1, 25)]


def test_find_dataset_takes_any_folder_first(tmp_path, monkeypatch):
  monkeypatch.setenv('CGVQ_KODAK', str(_fill(tmp_path / 'kodak', KODAK)))
  folder = _fill(tmp_path / 'mine', ['b', 'a'])
  _fill(folder, ['c'], 'JPG')
  (folder / 'notes.txt').write_text('not an image')
  (folder / '.hidden.png').write_bytes(b'')
  assert [path.name for path in datasets.find_dataset(folder)] == ['a.png', 'b.png', 'c.JPG']


def test_find_dataset_looks_for_kodak(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('CGVQ_KODAK', raising=False)
  _fill(tmp_path / 'data/kodak', [*KODAK, 'another'])
  assert [path.stem for path in datasets.find_dataset()] == KODAK
  monkeypatch.setenv('CGVQ_KODAK', str(_fill(tmp_path / 'elsewhere', KODAK, 'bmp')))
  assert {path.suffix for path in datasets.find_dataset()} == {'.bmp'}


def test_find_dataset_wants_all_of_kodak(tmp_path, monkeypatch):
  monkeypatch.setenv('CGVQ_KODAK', str(_fill(tmp_path / 'kodak', KODAK[:-1])))
  with pytest.raises(images.ImageError, match=r'got 23 images .*kodim24 missing'):
    datasets.find_dataset()


def test_find_dataset_names_the_ways_to_get_kodak(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('CGVQ_KODAK', raising=False)
  with pytest.raises(images.ImageError) as error:
    datasets.find_dataset()
  for way in ('root', 'CGVQ_KODAK', 'data/kodak', 'r0k.us/graphics/kodak', 'download_kodak'):
    assert way in str(error.value)


def test_find_dataset_refuses_bad_folders(tmp_path):
  with pytest.raises(images.ImageError, match='absent: wanted a folder of images'):
    datasets.find_dataset(tmp_path / 'absent')
  with pytest.raises(images.ImageError, match='no image'):
    datasets.find_dataset(tmp_path)
  _fill(tmp_path, ['a'])
  _fill(tmp_path, ['a'], 'bmp')
  with pytest.raises(images.ImageError, match="2 named 'a'"):
    datasets.find_dataset(tmp_path)


def test_select_picks_by_stem(tmp_path):
  paths = datasets.find_dataset(_fill(tmp_path, ['a', 'b', 'c']))
  assert [path.stem for path in datasets.select(paths, ['c', 'a'])] == ['c', 'a']
  assert datasets.select(paths, []) == paths
  with pytest.raises(images.ImageError, match="'d': wanted one of a, b, c"):
    datasets.select(paths, ['a', 'd'])


def _serve(monkeypatch, size):
  requested = []

  def urlopen(address, timeout):
    requested.append(address)
    buffer = io.BytesIO()
    Image.new('RGB', size).save(buffer, 'PNG')
    return io.BytesIO(buffer.getvalue())

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
  return requested


def test_download_kodak_fetches_what_is_missing(tmp_path, monkeypatch):
  requested = _serve(monkeypatch, (768, 512))
  folder = tmp_path / 'kodak'
  _fill(folder, KODAK[:22])
  paths = datasets.download_kodak(folder)
  assert requested == [f'https://r0k.us/graphics/kodak/kodak/kodim{n}.png' for n in (23, 24)]
  assert [path.stem for path in paths] == KODAK and all(path.is_file() for path in paths)
  assert len(list(folder.iterdir())) == 24


def test_download_kodak_refuses_another_picture(tmp_path, monkeypatch):
  _serve(monkeypatch, (100, 100))
  with pytest.raises(images.ImageError, match='100 x 100'):
    datasets.download_kodak(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_download_kodak_without_network(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise urllib.error.URLError('no route to host')

  monkeypatch.setattr(urllib.request, 'urlopen', refuse)
  with pytest.raises(images.ImageError, match=r'kodim01\.png: wanted .*no route to host'):
    datasets.download_kodak(tmp_path)


def test_sample_photograph_needs_no_download(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pooch', None)
  pixels = datasets.sample_photograph()
  assert pixels.shape == (400, 600, 3) and pixels.dtype == np.float32
  assert 0 <= pixels.min() < 0.1 and 0.9 < pixels.max() <= 1 and pixels.std() > 0.1
