"""A second decoder of the file format, written from docs/FORMAT.md alone.

Plain Python integers, no numpy, no constriction, nothing of cgvq_jax: slow, and independent. The
tests hold it against the codec, so the document, this file and the codec say the same.
"""

from __future__ import annotations


class Ans:
  """The coder of section 3: a stack of 32-bit words under a 64-bit state."""

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


def weigh(frequencies):
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
    return weigh([1] * bins)
  spacing = spacings[(kind - 1) // 6]
  resolution = (1, 4)[(kind - 1) // 3 % 2]
  decay = (8, 16, 32)[(kind - 1) % 3]
  top = 15 * resolution
  differences = weigh([frequency(max(240 - abs(d) * decay, 0)) for d in range(-top, top + 1)])
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
  return weigh(line)


def take_column(ans, alphabet, counts):
  counts = [count for count in counts if count > 0]
  if not counts or alphabet == 1:
    return [0] * sum(counts)
  bits = (alphabet - 1).bit_length()
  shift = bits - (1 + ans.uniform(min(bits, 10)))
  bins = ((alphabet - 1) >> shift) + 1
  common = take_histogram(ans, bins)
  sharing = ans.uniform(len(counts) + 1)
  flags = weigh([len(counts) - sharing, sharing])
  shares = [ans.take(flags) for _ in counts]
  histograms = [common if share else take_histogram(ans, bins) for share in shares]
  high = [
    ans.take(histogram)
    for histogram, count in zip(histograms, counts, strict=True)
    for _ in range(count)
  ]
  return [value << shift | ans.uniform(1 << shift) for value in high]


def decode_stream(data, layouts):
  """The columns of one stream; layouts are pairs of an alphabet and the counts of its groups."""
  ans = Ans(data)
  columns = [take_column(ans, alphabet, counts) for alphabet, counts in layouts]
  assert ans.state == 0 and not ans.words
  return columns


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

  def block(self):
    return self.take(self.varint())


def add_gaps(high, low, counts):
  values = []
  for count in counts:
    value = 0
    for _ in range(count):
      value += high[len(values)] * 64 + low[len(values)]
      values.append(value)
  return values


def decode_attribute(fields, counts):
  quantizer = fields.text()
  alphabets = [fields.varint() for _ in range(fields.varint())]
  is_sorted = fields.varint()
  tables = []
  for _ in range(fields.varint()):
    name, kind = fields.text(), fields.varint()
    shape = [len(counts)] + [fields.varint() for _ in range(fields.varint() - 1)]
    size = 1
    for axis in shape:
      size *= axis
    tables.append((name, (256, 65536)[kind], shape, size))
  values = []
  if tables:
    layouts = [(alphabet, [size]) for _, alphabet, _, size in tables]
    values = decode_stream(fields.block(), layouts)
  coded_alphabets = list(alphabets)
  if is_sorted:
    coded_alphabets[:1] = [(alphabets[0] - 1) // 64 + 1, min(alphabets[0], 64)]
  columns = decode_stream(fields.block(), [(alphabet, counts) for alphabet in coded_alphabets])
  if is_sorted:
    columns[:2] = [add_gaps(columns[0], columns[1], counts)]
  return {
    'quantizer': quantizer,
    'alphabets': alphabets,
    'tables': {
      table[0]: (table[2], entries) for table, entries in zip(tables, values, strict=True)
    },
    'columns': columns,
  }


def decode_file(data):
  """Everything in a file, as plain dicts and lists."""
  fields = Fields(data)
  assert fields.take(5) == b'CGVQ\x01'
  image = {name: fields.varint() for name in ('height', 'width', 'channels')}
  image['method'] = fields.text()
  image['counts'] = [fields.varint() for _ in range(fields.varint())]
  for attribute in ('position', 'rotation_scale', 'color'):
    image[attribute] = decode_attribute(fields, image['counts'])
  assert fields.position == len(data) - 4
  return image
