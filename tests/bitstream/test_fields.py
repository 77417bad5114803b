from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter


def reader(data):
  return FieldReader(data, 0, len(data), ['first', 'second'])


@given(st.lists(st.integers(0, 2**32), max_size=8))
def test_varints_round_trip_in_as_few_bytes_as_they_fit(numbers):
  writer = FieldWriter()
  for number in numbers:
    assert writer.varint('field', number, 0, 2**32) == number
  assert len(writer.data) == sum(max(1, -(-number.bit_length() // 7)) for number in numbers)
  fields = reader(bytes(writer.data))
  assert [fields.varint('field', 0, 2**32) for _ in numbers] == numbers
  assert fields.position == len(writer.data)


def test_varint_bytes_are_as_documented():
  writer = FieldWriter()
  writer.varint('field', 300, 0, 300)
  assert writer.data == bytes([0xAC, 0x02])


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'size: wanted 1 bytes, got 0'),
    (b'\x80', 'size: wanted 1 bytes, got 0'),
    (b'\x81\x00', 'size: wanted the shortest varint'),
    (b'\x80' * 9, 'size: wanted the shortest varint'),
    (b'\x02', r'size: wanted 3\.\.1000, got 2'),
    (b'\xff\x7f', r'size: wanted 3\.\.1000, got 16383'),
  ],
)
def test_bad_varints_are_named(data, message):
  with pytest.raises(ContainerError, match=message):
    reader(data).varint('size', 3, 1000)


@pytest.mark.parametrize('value', [2.0, '3', None, -1, 1001])
def test_writing_a_number_that_does_not_fit_is_named(value):
  with pytest.raises(ContainerError, match=r'size: wanted .*, got '):
    FieldWriter().varint('size', value, 0, 1000)


@pytest.mark.parametrize('name', ['a', 'residual_vq', 'x' * 32, 'A.b-1+2'])
def test_names_round_trip(name):
  writer = FieldWriter()
  writer.name('method', name)
  assert reader(bytes(writer.data)).name('method') == name


@pytest.mark.parametrize('name', ['', 'x' * 33, 'a b', 'ä', 'a\n', 7])
def test_bad_names_are_refused_on_both_sides(name):
  with pytest.raises(ContainerError, match='method: wanted 1 to 32'):
    FieldWriter().name('method', name)
  if isinstance(name, str):
    data = name.encode('latin-1')
    with pytest.raises(ContainerError, match='method: wanted 1 to 32'):
      reader(bytes([len(data)]) + data).name('method')


def test_sections_count_their_bytes():
  writer = FieldWriter()
  writer.varint('a', 200, 0, 255)
  writer.name('b', 'name')
  fields = reader(bytes(writer.data))
  assert fields.varint('a', 0, 255) == 200
  fields.section = 'second'
  assert fields.name('b') == 'name'
  assert fields.sizes == {'first': 2, 'second': 5}


def test_a_name_longer_than_the_file_is_named():
  with pytest.raises(ContainerError, match='method: wanted 9 bytes, got 2'):
    reader(b'\x09ab').name('method')
