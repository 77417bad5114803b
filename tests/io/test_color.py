"""Conversion to sRGB against the formulas of the standards, in NumPy."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from png_files import chunk, png_file

from cgvq_jax.io import color, icc, images, metadata

P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
COLOURS = np.array(list(itertools.product((0, 60, 128, 200, 255), repeat=3)), np.uint8)[None]
LEVELS = np.arange(256)
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def _srgb_decoded(values):
  return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _srgb_encoded(linear):
  linear = np.clip(linear, 0, 1)
  return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _to_xyz(primaries):
  """From linear RGB with the white D65 to XYZ."""
  columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
  x, y = icc.D65
  return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def _converted(primaries, decode):
  matrix = np.linalg.solve(_to_xyz(icc.SRGB_PRIMARIES), _to_xyz(primaries))
  return 255 * _srgb_encoded(decode(COLOURS / 255) @ matrix.T)


def _iccp(profile):
  return chunk(b'iCCP', b'any name\0\0' + zlib.compress(profile))


def _load(tmp_path, pixels, *blocks, bits=8):
  (tmp_path / 'a.png').write_bytes(png_file(pixels, b''.join(blocks), bits=bits))
  return images.load(tmp_path / 'a.png')


def _gama(value):
  return chunk(b'gAMA', struct.pack('>I', value))


def _chrm(primaries, white=icc.D65):
  points = np.array([white, *primaries]).ravel()
  return chunk(b'cHRM', struct.pack('>8I', *np.rint(points * 100000).astype(int).tolist()))


def _cicp(primaries, transfer, matrix=0, full_range=1):
  return chunk(b'cICP', bytes([primaries, transfer, matrix, full_range]))


SRGB_CHUNK = chunk(b'sRGB', b'\0')
PROFILE_NOTE = 'embedded colour profile (cgvq_jax)'
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
P3_PROFILE = icc.rgb_profile(P3, icc.D65, icc.SRGB_CURVE)


@pytest.mark.parametrize(
  ('blocks', 'primaries', 'decode', 'note'),
  [
    ([_iccp(P3_PROFILE)], P3, _srgb_decoded, PROFILE_NOTE),
    ([_cicp(12, 13)], P3, _srgb_decoded, 'cICP (Display P3)'),
    ([_gama(100000)], icc.SRGB_PRIMARIES, lambda x: x, 'gAMA'),
    ([_gama(55556)], icc.SRGB_PRIMARIES, lambda x: x**1.8, 'gAMA'),
    ([_chrm(P3)], P3, _srgb_decoded, 'cHRM'),
    ([_gama(45455), _chrm(P3)], P3, _srgb_decoded, 'gAMA and cHRM'),
    ([_cicp(9, 8)], BT2020, lambda x: x, 'cICP (BT.2020)'),
    # The first of them in the order of the specification counts.
    ([_gama(100000), SRGB_CHUNK, _iccp(P3_PROFILE)], P3, _srgb_decoded, PROFILE_NOTE),
    ([_iccp(SRGB_PROFILE), _cicp(12, 13)], P3, _srgb_decoded, 'cICP (Display P3)'),
  ],
)  # fmt: skip
def test_stated_colours_become_srgb(tmp_path, blocks, primaries, decode, note):
  loaded = _load(tmp_path, COLOURS, *blocks)
  difference = images.to_bytes8(loaded.pixels) - _converted(primaries, decode)
  assert np.abs(difference).max() < 1.5
  assert loaded.notes == (f'{note} converted to sRGB',)


@pytest.mark.parametrize(
  'blocks',
  [
    [_iccp(SRGB_PROFILE)],
    [_iccp(icc.rgb_profile(icc.SRGB_PRIMARIES, icc.D65, icc.SRGB_CURVE))],
    [SRGB_CHUNK, _gama(100000)],
    [_gama(45455), _chrm(icc.SRGB_PRIMARIES)],
    [_gama(45000)],
    [_cicp(1, 13), _gama(100000)],
    [_cicp(2, 2)],
  ],
)
def test_srgb_is_left_as_it_is(tmp_path, blocks):
  loaded = _load(tmp_path, COLOURS, *blocks)
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), COLOURS)
  assert loaded.notes == ()


@pytest.mark.parametrize(
  ('block', 'note'),
  [
    (_cicp(9, 16), 'cICP not applied: PQ has a higher range than sRGB'),
    (_cicp(9, 18), 'cICP not applied: HLG has a higher range than sRGB'),
    (_cicp(10, 13), 'cICP not applied: primaries 10 with transfer 13 are not supported'),
    (_cicp(12, 13, 1), 'cICP not applied: it is not of RGB in full range'),
    (_cicp(12, 13, 0, 0), 'cICP not applied: it is not of RGB in full range'),
    (_gama(0), 'gAMA not applied: curve: wanted'),
    (_chrm(((0.1, 0.1), (0.2, 0.2), (0.3, 0.3))), 'cHRM not applied: primaries: wanted a triangle'),
    (_chrm(((0.1, 0), (0.2, 0.2), (0.3, 0.1))), 'cHRM not applied: wanted chromaticities'),
    (_iccp(b'profile'), 'embedded colour profile not applied: '),
    (_iccp(SRGB_PROFILE[:200]), 'embedded colour profile not applied: '),
    (_iccp(icc.gray_profile((1.0,))), f'{PROFILE_NOTE} not applied: it is of GRAY'),
    (chunk(b'iCCP', b'name\0\0not compressed'), 'damaged iCCP chunk ignored'),
    (chunk(b'iCCP', b'name\0\0' + zlib.compress(bytes(1 << 25))), 'damaged iCCP chunk ignored'),
  ],
)  # fmt: skip
def test_what_cannot_be_converted_keeps_its_numbers(tmp_path, block, note):
  loaded = _load(tmp_path, COLOURS, block)
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), COLOURS)
  (got,) = loaded.notes
  assert got.startswith(note)


def test_without_littlecms_a_profile_is_not_applied(tmp_path, monkeypatch):
  class Absent:
    def __getattr__(self, name):
      raise ImportError('The _imagingcms C module is not installed')

  monkeypatch.setattr(ImageCms, 'core', Absent())
  loaded = _load(tmp_path, COLOURS, _iccp(P3_PROFILE))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels), COLOURS)
  assert loaded.notes == (
    'embedded colour profile not applied: The _imagingcms C module is not installed',
  )


@pytest.mark.parametrize(
  ('block', 'decode'),
  [
    (_iccp(icc.gray_profile((2.2,))), lambda x: x**2.2),
    (_iccp(icc.rgb_profile(icc.SRGB_PRIMARIES, icc.D65, (1.8,))), lambda x: x**1.8),
    (_gama(100000), lambda x: x),
    (_cicp(1, 4), lambda x: x**2.2),
  ],
)
def test_gray_stays_gray_on_the_tone_curve_of_srgb(tmp_path, block, decode):
  loaded = _load(tmp_path, LEVELS[None], block)
  assert loaded.pixels.shape == (1, 256, 1) and loaded.notes[0].endswith('converted to sRGB')
  wanted = _srgb_encoded(decode(LEVELS / 255))
  assert np.abs(255 * loaded.pixels[0, :, 0] - 255 * wanted).max() < 0.6


def test_gray_of_16_bits_is_converted_in_16_bits(tmp_path):
  values = np.arange(0, 65536, 97)
  loaded = _load(tmp_path, values[None], _gama(100000), bits=16)
  wanted = _srgb_encoded(values / 65535)
  assert np.abs(loaded.pixels[0, :, 0] - wanted).max() < 2e-5
  assert loaded.notes[0] == 'gAMA converted to sRGB'
  rgb = _iccp(icc.rgb_profile(icc.SRGB_PRIMARIES, icc.D65, (1.8,)))
  loaded = _load(tmp_path, values[None], rgb, bits=16)
  wanted = _srgb_encoded((values / 65535) ** 1.8)
  assert np.abs(loaded.pixels[0, :, 0] - wanted).max() < 0.6 / 255


@pytest.mark.parametrize('profile', [SRGB_PROFILE, icc.gray_profile(icc.SRGB_CURVE)])
@pytest.mark.parametrize('bits', [8, 16])
def test_gray_that_is_srgb_is_left_as_it_is(tmp_path, profile, bits):
  values = np.arange(0, 1 << bits, (1 << bits) // 128 + 1)
  loaded = _load(tmp_path, values[None], _iccp(profile), bits=bits)
  np.testing.assert_array_equal(loaded.pixels[0, :, 0], values.astype(np.float32) / (2**bits - 1))
  assert not any('profile' in note for note in loaded.notes)


def test_a_profile_that_tints_gray_is_not_applied(tmp_path):
  profile = icc.rgb_profile(icc.SRGB_PRIMARIES, icc.D65, icc.SRGB_CURVE)
  (red,) = struct.unpack_from('>I', profile, profile.index(b'rXYZ') + 4)
  tinted = profile[: red + 8] + struct.pack('>3i', 20000, 8000, 100) + profile[red + 20 :]
  loaded = _load(tmp_path, LEVELS[None], _iccp(tinted))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels)[0, :, 0], LEVELS)
  assert loaded.notes[0].endswith('not applied: it gives gray a colour')


@pytest.mark.parametrize('channels', [2, 4])
def test_alpha_passes_through(tmp_path, channels):
  values = np.repeat(LEVELS[None, :, None], channels, -1)
  values[..., -1] = LEVELS[::-1]
  loaded = _load(tmp_path, values, _gama(100000))
  np.testing.assert_array_equal(images.to_bytes8(loaded.pixels)[0, :, 3], LEVELS[::-1])
  wanted = 255 * _srgb_encoded(LEVELS / 255)
  assert np.abs(255 * loaded.pixels[0, :, :3] - wanted[:, None]).max() < 1.5
  assert loaded.notes[-1] == 'gAMA converted to sRGB'


def test_a_transparent_colour_is_that_of_the_file(tmp_path):
  transparent = chunk(b'tRNS', struct.pack('>3H', 10, 20, 30))
  pixels = np.array([[[10, 20, 30], [11, 20, 30]]])
  loaded = _load(tmp_path, pixels, _gama(100000), transparent)
  np.testing.assert_array_equal(loaded.pixels[0, :, 3], [0, 1])


def test_gray_profile_of_gray_pixels_with_alpha(tmp_path):
  # Pillow reads 16-bit gray with alpha as RGBA.
  values = np.stack([LEVELS, LEVELS], -1)[None] * 257
  loaded = _load(tmp_path, values, _iccp(icc.gray_profile((1.0,))), bits=16)
  wanted = 255 * _srgb_encoded(LEVELS / 255)
  assert np.abs(255 * loaded.pixels[0, :, :3] - wanted[:, None]).max() < 0.6


def _cmyk_profile() -> bytes:
  """A printer of two levels an ink (lut8Type, ICC.1:2022 section 10.11), Lab without colour.

  Lightness is 100 without ink, and 0 where there is black or all of the others.
  """
  lightness = [
    0 if black else round(255 * (3 - cyan - magenta - yellow) / 3)
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4)
  ]
  linear = bytes(range(256))
  table = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0])
  table += b''.join(struct.pack('>i', value << 16) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
  table += 4 * linear + b''.join(bytes([value, 128, 128]) for value in lightness) + 3 * linear
  gray = icc.gray_profile((1.0,))
  header = bytearray(gray[:128])
  header[8:24] = b'\x02\x40\0\0prtrCMYKLab '
  white = b'XYZ \0\0\0\0' + struct.pack('>3i', 63190, 65536, 54061)
  tags = {b'A2B0': table, b'wtpt': white}
  offset, entries, body = 128 + 4 + 24, struct.pack('>I', 2), b''
  for name, data in tags.items():
    entries += struct.pack('>4sII', name, offset + len(body), len(data))
    body += data + bytes(-len(data) % 4)
  header[:4] = struct.pack('>I', 128 + len(entries) + len(body))
  return bytes(header) + entries + body


@pytest.mark.parametrize('extension', ['tif', 'jpg'])
def test_cmyk_is_converted_by_its_profile(tmp_path, extension):
  path = tmp_path / f'a.{extension}'
  ink = Image.new(
    'CMYK', (16, 16), (255, 128, 0, 0)
  )  # by the profile lightness 100 (1 - 383 / 765)
  ink.save(path, icc_profile=_cmyk_profile(), **({'quality': 100} if extension == 'jpg' else {}))
  loaded = images.load(path)
  relative = ((100 * (1 - 383 / 765) + 16) / 116) ** 3
  wanted = 255 * _srgb_encoded(relative)
  assert np.abs(255 * loaded.pixels - wanted).max() < 2.5
  assert loaded.notes == (
    'CMYK converted to RGB',
    'embedded colour profile converted to sRGB',
  )
  ink.save(path, icc_profile=SRGB_PROFILE)
  loaded = images.load(path)
  assert loaded.notes[1].endswith('not applied: it is of RGB, the picture of CMYK')
  np.testing.assert_allclose(255 * loaded.pixels[0, 0], ink.convert('RGB').getpixel((0, 0)), atol=3)


@pytest.mark.parametrize('extension', ['jpg', 'webp', 'tif', 'png', 'avif'])
def test_profiles_of_every_format(tmp_path, extension):
  path = tmp_path / f'a.{extension}'
  Image.new('RGB', (16, 16), (60, 200, 60)).save(path, icc_profile=P3_PROFILE)
  plain = tmp_path / f'b.{extension}'
  Image.new('RGB', (16, 16), (60, 200, 60)).save(plain)
  stored = images.to_bytes8(images.load(plain).pixels)[0, 0] / 255
  matrix = np.linalg.solve(_to_xyz(icc.SRGB_PRIMARIES), _to_xyz(P3))
  wanted = 255 * _srgb_encoded(matrix @ _srgb_decoded(stored))
  loaded = images.load(path)
  assert np.abs(255 * loaded.pixels[8, 8] - wanted).max() < 1.5
  assert 'embedded colour profile (cgvq_jax) converted to sRGB' in loaded.notes


def test_lab_has_no_need_of_a_profile(tmp_path):
  picture = Image.fromarray(COLOURS).convert('LAB')
  picture.save(tmp_path / 'a.tif')
  assert 'icc_profile' in Image.open(tmp_path / 'a.tif').info
  assert images.load(tmp_path / 'a.tif').notes == ('LAB converted to RGB',)


def test_built_profiles_are_what_littlecms_reads():
  profile = ImageCms.ImageCmsProfile(io.BytesIO(P3_PROFILE)).profile
  assert profile.version == 4.4 and profile.xcolor_space.strip() == 'RGB'
  assert struct.unpack('>I', P3_PROFILE[:4]) == (len(P3_PROFILE),)
  # The colorants of Display P3 adapted to D50, as ColorSync's profile of that name has them.
  np.testing.assert_allclose(profile.red_colorant[0], (0.51512, 0.24120, -0.00105), atol=2e-4)
  np.testing.assert_allclose(profile.green_colorant[0], (0.29198, 0.69225, 0.04189), atol=2e-4)
  np.testing.assert_allclose(profile.blue_colorant[0], (0.15710, 0.06657, 0.78407), atol=2e-4)


def test_unspecified_code_points_are_those_of_srgb():
  assert color.from_codes('nclx', 2, 2) is None and color.from_gamma(None, None) is None
  image = Image.fromarray(COLOURS)
  for codes in (2, 13), (1, 2):
    stated = color.from_codes('nclx', *codes)
    assert stated is not None and color.to_srgb(image, stated) is image


def _avif(tmp_path, primaries, transfer):
  """A file whose boxes state these code points."""
  path = tmp_path / 'a.avif'
  Image.new('RGB', (16, 16), (60, 200, 60)).save(path, quality=100)
  data = bytearray(path.read_bytes())
  place = data.index(b'colrnclx') + 8
  data[place : place + 4] = struct.pack('>HH', primaries, transfer)
  path.write_bytes(data)
  return images.load(path)


def test_code_points_of_avif(tmp_path):
  plain = _avif(tmp_path, 1, 13)
  assert plain.notes == () == _avif(tmp_path, 2, 2).notes
  loaded = _avif(tmp_path, 12, 13)
  assert loaded.notes == ('nclx (Display P3) converted to sRGB',)
  matrix = np.linalg.solve(_to_xyz(icc.SRGB_PRIMARIES), _to_xyz(P3))
  wanted = 255 * _srgb_encoded(matrix @ _srgb_decoded(plain.pixels[0, 0]))
  assert np.abs(255 * loaded.pixels[0, 0] - wanted).max() < 1.5
  loaded = _avif(tmp_path, 9, 16)
  np.testing.assert_array_equal(loaded.pixels, plain.pixels)
  assert loaded.notes == ('nclx not applied: PQ has a higher range than sRGB',)


def test_bits_of_avif(tmp_path):
  Image.new('RGB', (16, 16)).save(tmp_path / 'a.avif')
  data = (tmp_path / 'a.avif').read_bytes()
  assert metadata.avif_properties(data) == ((1, 13), 8)
  place = data.index(b'pixi') + 9
  ten = data[:place] + bytes([10]) + data[place + 1 :]
  assert metadata.avif_properties(ten).bits == 10  # Pillow writes no such file
  assert metadata.avif_properties(b'') == metadata.avif_properties(data[:60]) == (None, 8)
