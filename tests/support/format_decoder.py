"""A second decoder of the file format, written from docs/FORMAT.md alone.

Plain Python integers, numpy for the picture, no constriction, nothing of cgvq_jax: slow, and
independent. The tests hold it against the codec, so the document, this file and the codec say the
same.
"""

from __future__ import annotations

import functools
import math

import numpy as np


class Ans:
  """Entropy coding, section 3: a stack of 32-bit words under a 64-bit state."""

  def __init__(self, data):
    data = data + bytes(-len(data) % 4)
    self.words = [int.from_bytes(data[i : i + 4], 'little') for i in range(0, len(data), 4)]
    self.state = 0
    self.refill()
    self.refill()

  def refill(self):
    if self.state < 1 << 32 and self.words:
      self.state = self.state << 32 | self.words.pop()

  def take(self, weights):
    quantile = self.state & (1 << 24) - 1
    symbol = start = 0
    while start + weights[symbol] <= quantile:
      start += weights[symbol]
      symbol += 1
    self.state = (self.state >> 24) * weights[symbol] + quantile - start
    self.refill()
    return symbol

  def uniform(self, size):
    if size == 1:
      return 0
    weight = (1 << 24) // size
    quantile = self.state & (1 << 24) - 1
    symbol = min(quantile // weight, size - 1)
    last = (1 << 24) - weight * (size - 1)
    own_weight = last if symbol == size - 1 else weight
    self.state = (self.state >> 24) * own_weight + quantile - symbol * weight
    self.refill()
    return symbol

  def give_back_uniform(self, symbol, size):
    if size == 1:
      return
    weight = (1 << 24) // size
    own_weight = (1 << 24) - weight * (size - 1) if symbol == size - 1 else weight
    if self.state >> 40 >= own_weight:
      self.words.append(self.state & (1 << 32) - 1)
      self.state >>= 32
    rounds, rest = divmod(self.state, own_weight)
    self.state = (rounds << 24) + symbol * weight + rest


def normalize_frequencies(frequencies):
  total, free = sum(frequencies), (1 << 24) - len(frequencies)
  weights, before, summed = [], 0, 0
  for frequency in frequencies:
    summed += frequency
    cut = summed * free // total
    weights.append(cut - before + 1)
    before = cut
  return weights


def frequency(height):
  return (16 + height % 16) * 2 ** (height // 16) - 16


def take_histogram(ans, bins):
  spacings = [1]
  while spacings[-1] <= bins - 1:
    spacings.append(2 * spacings[-1])
  kind = ans.uniform(1 + 6 * len(spacings))
  if kind == 0:
    return normalize_frequencies([1] * bins)
  spacing = spacings[(kind - 1) // 6]
  resolution = (1, 4)[(kind - 1) // 3 % 2]
  decay = (8, 16, 32)[(kind - 1) % 3]
  top = 15 * resolution
  differences = normalize_frequencies(
    [frequency(max(240 - abs(d) * decay, 0)) for d in range(-top, top + 1)]
  )
  heights = [ans.uniform(top + 1)]
  while (len(heights) - 1) * spacing < bins - 1:
    heights.append(heights[-1] + ans.take(differences) - top)
  assert all(0 <= level <= top for level in heights)
  heights = [level * 16 // resolution for level in heights]
  line = []
  for b in range(bins):
    left, along = divmod(b, spacing)
    height = heights[left] * (spacing - along)
    if along:
      height += heights[left + 1] * along
    line.append(frequency(height // spacing))
  return normalize_frequencies(line)


def take_model(ans, alphabet, counts):
  """(shift, the weights of each group) or None."""
  present = [count for count in counts if count > 0]
  if not present or alphabet == 1:
    return None
  bits = (alphabet - 1).bit_length()
  shift = bits - (1 + ans.uniform(min(bits, 10)))
  bins = ((alphabet - 1) >> shift) + 1
  common = take_histogram(ans, bins)
  sharing = ans.uniform(len(present) + 1)
  flags = normalize_frequencies([len(present) - sharing, sharing])
  shares = [ans.take(flags) for _ in present]
  histograms = iter([common if share else take_histogram(ans, bins) for share in shares])
  return shift, [next(histograms) if count > 0 else None for count in counts]


def take_values(ans, model, alphabet, counts):
  if model is None:
    return [0] * sum(counts)
  shift, histograms = model
  high = [
    ans.take(histogram)
    for histogram, count in zip(histograms, counts, strict=True)
    for _ in range(count)
  ]
  values = [value << shift | ans.uniform(1 << shift) for value in high]
  assert all(value < alphabet for value in values)
  return values


def take_column(ans, alphabet, counts):
  return take_values(ans, take_model(ans, alphabet, counts), alphabet, counts)


def decode_columns(data, layouts):
  """The columns of a stream; layouts are pairs of an alphabet and the counts of its groups."""
  ans = Ans(data)
  columns = [take_column(ans, alphabet, counts) for alphabet, counts in layouts]
  assert ans.state == 0 and not ans.words
  return columns


@functools.cache
def log_sum(i):
  """F_i of section 6."""
  return 0 if i == 0 else log_sum(i - 1) + (i**256).bit_length() - 1


for i in range(400):  # in steps that recursion can take
  log_sum(i)


@functools.cache
def count_weights(count, alpha):
  logs = []
  for first in range(count + 1):
    second = count - first
    log = -log_sum(first) - log_sum(second)
    if alpha:
      log += log_sum(first + alpha - 1) + log_sum(second + alpha - 1)
    logs.append(log)
  return normalize_frequencies([frequency(max(0, 240 + (log - max(logs)) // 16)) for log in logs])


def take_point_sets(ans, alphabets, counts):
  """The sorted rows of each group, one after the other."""
  present = [group for group, count in enumerate(counts) if count > 0]
  if not present:
    return []
  tops = [take_column(ans, alphabet, [len(present)]) for alphabet in alphabets]
  boxes = [
    (group, [0] * len(alphabets), [top + 1 for top in box_tops], counts[group])
    for group, box_tops in zip(present, zip(*tops, strict=True), strict=True)
  ]
  found = []
  while boxes:
    cut = []
    for group, low, sizes, count in boxes:
      if count > 1 and max(sizes) > 1:
        cut.append((group, low, sizes, count))
      else:
        row = [start + ans.uniform(size) for start, size in zip(low, sizes, strict=True)]
        found += [(group, row)] * count
    boxes = []
    if cut:
      alpha = (1, 2, 4, 8, 16, 32, 64, None)[ans.uniform(8)]
      many = [i for i, box in enumerate(cut) if box[3] > 255]
      few = sorted((box[3], i) for i, box in enumerate(cut) if box[3] <= 255)
      first = {i: ans.uniform(cut[i][3] + 1) for i in many}
      first |= {i: ans.take(count_weights(count, alpha)) for count, i in few}
      for i, (group, low, sizes, count) in enumerate(cut):
        axis = sizes.index(max(sizes))
        half = (sizes[axis] + 1) // 2
        behind = [start + half * (j == axis) for j, start in enumerate(low)]
        in_first = [half if j == axis else size for j, size in enumerate(sizes)]
        in_second = [size - half if j == axis else size for j, size in enumerate(sizes)]
        halves = ((low, in_first, first[i]), (behind, in_second, count - first[i]))
        boxes += [(group, *half) for half in halves if half[2] > 0]
  return [row for _, row in sorted(found)]


def take_sequence(ans, alphabets, counts, plain):
  """Rows of all attributes together, plain ones first."""
  models = [take_model(ans, alphabet, counts) for alphabet in alphabets]

  def rows(part):
    layouts = zip(models, alphabets, strict=True)
    columns = [take_values(ans, model, alphabet, part) for model, alphabet in layouts]
    return list(zip(*columns, strict=True))

  cluster = [k for k, count in enumerate(counts) for _ in range(count)]
  plain_counts = [cluster[:plain].count(k) for k in range(len(counts))]
  left_counts = [cluster[plain:].count(k) for k in range(len(counts))]
  chosen = iter(rows(left_counts))
  groups = [[next(chosen) for _ in range(count)] for count in left_counts]
  digits = []
  for group in groups:
    remaining = sorted(group)
    for row in group:
      before, equal, size = remaining.index(row), remaining.count(row), len(remaining)
      remaining.pop(before)
      digits.append((before, equal, size))
  digits = [(before + ans.uniform(equal), size) for before, equal, size in digits]
  for digit, size in reversed(digits):
    ans.give_back_uniform(digit, size)
  return rows(plain_counts) + [row for group in groups for row in sorted(group)]


# --- version 2, sections 9 and 10 ---


STEPS = [1024, 1024, 1024, 739, 522, 369, 261, 185, 131, 92, 65, 46, 33, 23, 16, 12, 8, 6, 4, 3, 2]
STEPS += 11 * [1]
SHIFTS = 13 * [0] + [1, 2, 2, 3, 3, 4, 4, 5] + 11 * [6]


def in_groups(ans, groups):
  """A column that has its alphabet in front; groups are numbers, one for each value."""
  alphabet = 1 + ans.uniform(65536)
  order = sorted(range(len(groups)), key=lambda i: groups[i])
  counts = [0] * (max(groups, default=0) + 1)
  for group in groups:
    counts[group] += 1
  values = [0] * len(groups)
  for place, value in zip(order, take_column(ans, alphabet, counts), strict=True):
    values[place] = value
  return values


def shifted_column(ans, shifts, groups):
  least = ans.uniform(65536) - 32768
  high = [least + value for value in in_groups(ans, groups)]
  return [(h << shift) + ans.uniform(1 << shift) for h, shift in zip(high, shifts, strict=True)]


def take_boxes(ans, corner, size, count):
  """(low, size) of each Gaussian's box, in the order of the cuts, which all columns follow."""
  boxes, done = [(corner, size, count)], []
  while boxes:
    cut = []
    for low, sizes, rows in boxes:
      if rows > 1 and max(sizes) > 1:
        cut.append((low, sizes, rows))
      else:
        done += [(low, sizes)] * rows
    boxes = []
    if cut:
      alpha = (1, 2, 4, 8, 16, 32, 64, None)[ans.uniform(8)]
      first = {i: ans.uniform(box[2] + 1) for i, box in enumerate(cut) if box[2] > 255}
      few = sorted((box[2], i) for i, box in enumerate(cut) if box[2] <= 255)
      first |= {i: ans.take(count_weights(rows, alpha)) for rows, i in few}
      for i, ((x, y), (wide, high), rows) in enumerate(cut):
        if wide >= high:
          half = (wide + 1) // 2
          parts = ((x, y), (half, high)), ((x + half, y), (wide - half, high))
        else:
          half = (high + 1) // 2
          parts = ((x, y), (wide, half)), ((x, y + half), (wide, high - half))
        counts = first[i], rows - first[i]
        boxes += [(*part, rows) for part, rows in zip(parts, counts, strict=True) if rows]
  return done


def thirds(values, classes):
  cuts = {}
  for own in set(classes):
    members = sorted(v for v, g in zip(values, classes, strict=True) if g == own)
    cuts[own] = members[len(members) // 3], members[2 * len(members) // 3]
  return [sum(v > cut for cut in cuts[g]) for v, g in zip(values, classes, strict=True)]


def table_number(number):
  """A number of a table, rounded to a multiple of 2^-30."""
  return float(np.rint(number * 2.0**30) / 2.0**30)


RATIOS = [table_number(2.0 ** (-g / 2)) for g in range(32)]


def cosine(a):
  return table_number(math.cos(math.pi * a / 4096))


def deviation(level, g):
  x = min(max(level * STEPS[g], -32768), 32767)
  return math.ldexp(table_number(2.0 ** (x % 1024 / 1024)), x // 1024)


def rotations_of(s1, s2, g):
  q = s1 / s2
  return max(math.ceil(min(math.pi / 2 * abs(q - 1 / q) / RATIOS[g], 4096.0)), 1)


def cells_of(s1, s2, rotation, rotations, g, size):
  a = 4096 * rotation // rotations
  cos, sin = cosine(a), cosine(abs(a - 2048))
  dy = math.sqrt((s1 * sin) * (s1 * sin) + (s2 * cos) * (s2 * cos))
  steps = [math.sqrt(2) * RATIOS[g] * spread for spread in (s1 * s2 / dy, dy)]
  wanted = [side / 16 / step for side, step in zip(size, steps, strict=True)]
  return [max(math.floor(min(cells, 4096.0) + 0.5), 1) for cells in wanted]


def decode_adaptive(data):
  """Everything in a file of version 2."""
  fields = Fields(data)
  assert fields.take(5) == b'CGVQ\x02'
  image = {name: fields.varint() for name in ('height', 'width', 'channels')}
  image['method'] = fields.text()
  image['step_index'], count = fields.varint(), fields.varint()
  channels = image['channels']
  ans = Ans(data[fields.position : -4])
  left, top, right, bottom = (ans.uniform(8193) for _ in range(4))
  size = 16 * (image['width'] + left + right), 16 * (image['height'] + top + bottom)
  axes = [ans.uniform(256) - 128 for _ in range(channels**2)]
  boxes = take_boxes(ans, (-16 * left, -16 * top), size, count)
  classes = in_groups(ans, [0] * count)
  assert max(classes) < 32
  shifts = [SHIFTS[g] for g in classes]
  first = shifted_column(ans, shifts, classes)
  contexts = zip(classes, thirds(first, classes), strict=True)
  second = shifted_column(ans, shifts, [3 * g + third for g, third in contexts])
  columns = zip(first, second, classes, strict=True)
  scales = [(deviation(one, g), deviation(two, g)) for one, two, g in columns]
  rotations = [rotations_of(*s, g) for s, g in zip(scales, classes, strict=True)]
  bins = iter(in_groups(ans, [0] * sum(m >= 16 for m in rotations)))
  ranges = []
  for m in rotations:
    b = next(bins) if m >= 16 else None
    assert b is None or b < 16
    ranges.append((0, m) if b is None else (-(-b * m // 16), -(-(b + 1) * m // 16)))
  rotation = [start + ans.uniform(stop - start) for start, stop in ranges]
  cells = [
    cells_of(*s, angle, m, g, box)
    for s, angle, m, g, (_, box) in zip(scales, rotation, rotations, classes, boxes, strict=True)
  ]
  cell = [(ans.uniform(across), ans.uniform(down)) for across, down in cells]
  shifts, contexts, colors = [max(g // 2 - 4, 0) for g in classes], [0] * count, []
  for _ in range(channels):
    groups = [3 * g + context for g, context in zip(classes, contexts, strict=True)]
    colors.append(shifted_column(ans, shifts, groups))
    contexts = [min(2, abs(v) >> shift) for v, shift in zip(colors[-1], shifts, strict=True)]
  assert ans.state == 0 and not ans.words
  image |= {
    'axes': axes,
    'energy_class': classes,
    'log_scale': (first, second),
    'rotation': rotation,
  }
  image |= {'boxes': boxes, 'cell': cell, 'color': colors}
  image['gaussians'] = adaptive_gaussians(image, scales, rotations, cells)
  return image


def adaptive_gaussians(image, scales, rotations, cells):
  """Means, rotations, standard deviations and colours."""
  channels = image['channels']
  rows = []
  for row in np.array(image['axes'], float).reshape(channels, channels) / 127:
    rest = row - sum((row @ other) * other for other in rows)
    length = math.sqrt(rest @ rest)
    assert length >= 0.25
    rows.append(rest / length)
  scale = np.array(scales)
  low, size = (np.array(part, float) for part in zip(*image['boxes'], strict=True))
  cell, cells = np.array(image['cell']), np.array(cells)
  mean = (low + (2 * cell + 1) * size / (2 * cells)) / 16
  step = 2.0 ** (2 - image['step_index'] / 64)
  color = step * np.array(image['color']).T @ np.array(rows)
  color = color / np.sqrt(np.pi * scale[:, :1] * scale[:, 1:])
  return mean, np.pi * np.array(image['rotation']) / np.array(rotations), scale, color


class Fields:
  def __init__(self, data):
    self.data, self.position = data, 0

  def take(self, size):
    self.position += size
    return self.data[self.position - size : self.position]

  def varint(self):
    byte = self.take(1)[0]
    return byte if byte < 128 else (byte & 127) + 128 * self.varint()

  def text(self):
    return self.take(self.varint()).decode('ascii')


def attribute_fields(fields):
  quantizer = fields.text()
  alphabets = [fields.varint() for _ in range(fields.varint())]
  tables = []
  for _ in range(fields.varint()):
    name, kind = fields.text(), fields.varint()
    tables.append((name, kind, [fields.varint() for _ in range(fields.varint() - 1)]))
  return quantizer, alphabets, tables


def take_table(ans, kind, shape):
  """The entries in row-major order."""
  if kind < 2:
    return take_column(ans, (256, 65536)[kind], [math.prod(shape)])
  num_rows, num_columns = shape[-2:]
  counts = [1 + less for less in take_column(ans, num_rows, [math.prod(shape[:-2])])]
  rows = iter(take_point_sets(ans, [256] * num_columns, counts))
  entries = []
  for count in counts:
    block = [next(rows) for _ in range(count)]
    block += block[-1:] * (num_rows - count)
    entries += [entry for row in block for entry in row]
  return entries


def decode_file(data):
  """Everything in a file, as plain dicts and lists."""
  return decode_adaptive(data) if data[4] == 2 else decode_clustered(data)


def decode_clustered(data):
  """A file of version 1."""
  fields = Fields(data)
  assert fields.take(5) == b'CGVQ\x01'
  image = {name: fields.varint() for name in ('height', 'width', 'channels')}
  image['method'] = fields.text()
  counts = image['counts'] = [fields.varint() for _ in range(fields.varint())]
  plain = fields.varint() if fields.varint() else None
  attributes = [attribute_fields(fields) for _ in range(3)]
  ans = Ans(data[fields.position : -4])
  tables = [
    {
      name: ([len(counts), *sizes], take_table(ans, kind, [len(counts), *sizes]))
      for name, kind, sizes in t
    }
    for _, _, t in attributes
  ]
  alphabets = [alphabet for _, sizes, _ in attributes for alphabet in sizes]
  if plain is None:
    positions = take_point_sets(ans, attributes[0][1], counts)
    columns = [list(column) for column in zip(*positions, strict=True)]
    columns += [take_column(ans, alphabet, counts) for alphabet in alphabets[len(columns) :]]
  else:
    rows = take_sequence(ans, alphabets, counts, plain)
    columns = [list(column) for column in zip(*rows, strict=True)]
  assert ans.state == 0 and not ans.words
  left = iter(columns)
  names = ('position', 'rotation_scale', 'color')
  for name, (quantizer, sizes, _), stored in zip(names, attributes, tables, strict=True):
    image[name] = {
      'quantizer': quantizer,
      'alphabets': sizes,
      'tables': stored,
      'columns': [next(left) for _ in sizes],
    }
  return image


# --- the picture, section 8 ---


def halves(table):
  shape, entries = table
  return np.array(entries, np.uint16).view(np.float16).astype(np.float64).reshape(shape)


def numbers(attribute, cluster):
  """The numbers of every Gaussian [N, D]."""
  symbols = np.array(attribute['columns']).T
  tables = attribute['tables']
  if attribute['quantizer'] == 'fp16':
    return halves((symbols.shape, symbols))
  if attribute['quantizer'] in ('uniform', 'lattice'):
    return symbols * halves(tables['step'])[cluster] + halves(tables['offset'])[cluster]
  assert attribute['quantizer'] == 'residual'
  shape, entries = tables['entries']
  low, step = halves(tables['low']), halves(tables['step'])
  books = low[:, :, None] + step[:, None, None] * np.array(entries).reshape(shape)
  stages = np.arange(symbols.shape[1])
  return books[cluster[:, None], stages, symbols].sum(axis=1)


def gaussians(image):
  """Means, rotations, standard deviations and colours of a file of version 1."""
  height, width = image['height'], image['width']
  cluster = np.repeat(np.arange(len(image['counts'])), image['counts'])
  position, shape, color = (
    numbers(image[name], cluster) for name in ('position', 'rotation_scale', 'color')
  )
  return (position + 1) * [width, height] / 2, shape[:, 0], np.exp(shape[:, 1:]), color


def render(image):
  """8-bit pixels [H, W, C] of a decoded file: every pixel sees every Gaussian."""
  height, width = image['height'], image['width']
  mean, rotation, scale, color = image.get('gaussians') or gaussians(image)
  deviation = np.clip(scale, 1e-3, 1e6)
  cosine, sine = np.cos(rotation), np.sin(rotation)
  y, x = np.mgrid[:height, :width] + 0.5
  pixels = np.zeros((height, width, color.shape[1]))
  for i in range(len(mean)):
    dx, dy = x - mean[i, 0], y - mean[i, 1]
    along = (dx * cosine[i] + dy * sine[i]) / deviation[i, 0]
    across = (dy * cosine[i] - dx * sine[i]) / deviation[i, 1]
    q = (along**2 + across**2) / 2
    pixels += np.where(q <= math.log(255), np.exp(-q), 0)[:, :, None] * color[i]
  return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
