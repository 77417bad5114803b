"""The papers' methods: clusters of Gaussians with codebooks each, trained through the quantizers.

Two stages: the fit, then `finetune`, in which Gaussians and codebooks are trained with a
straight-through gradient (CGVQ poster; GaussianImage, section 3.2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from cgvq_jax.bitstream.base import MAX_GAUSSIANS
from cgvq_jax.bitstream.codebooks import MAX_CLUSTERS
from cgvq_jax.bitstream.ordering import ORDERS
from cgvq_jax.devices import place
from cgvq_jax.fit import optimizers
from cgvq_jax.fit.api import fit_stage, functions_of
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import (
  FitState,
  Forward,
  ForwardFn,
  Progress,
  Stage,
  Stages,
  StageState,
  blocks_of,
  initial_state,
  padded_target,
)
from cgvq_jax.inputs import check_number
from cgvq_jax.io.images import to_bytes8
from cgvq_jax.metrics import psnr
from cgvq_jax.primitives.geometry import canonical
from cgvq_jax.primitives.sensitivity import sensitivity
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize.base import Dequantizer, Params, Quantizer
from cgvq_jax.quantize.clustered import (
  ATTRIBUTES,
  CodebookSymbols,
  Stream,
  columns_of,
  dequantize,
)
from cgvq_jax.quantize.clusters import Clusters, cluster, join, layout, split
from cgvq_jax.rasterize.api import rasterize


@struct.dataclass
class Rows:
  """One value for each attribute: rows of the Gaussians, or a quantizer's params."""

  position: Any  # [N, 2], -1..1 from edge to edge of the image
  rotation_scale: Any  # [N, 3], [rotation, log s1, log s2]
  color: Any  # [N, C]


class Quantizers(NamedTuple):
  """One for each attribute."""

  position: Quantizer
  rotation_scale: Quantizer
  color: Quantizer


class CodebookMethod(NamedTuple):
  """A codec variant is a choice of functions: one quantizer for each attribute."""

  name: str
  num_gaussians: int  # N, to fit at most
  num_clusters: int  # K
  position: Quantizer  # rows [x, y], -1..1 from edge to edge of the image
  rotation_scale: Quantizer  # rows [rotation, log s1, log s2]
  color: Quantizer  # rows of C channels
  order: str = 'sorted'  # of the Gaussians in the file, a key of ordering.ORDERS

  @property
  def quantizers(self) -> Quantizers:
    """The quantizer of each attribute."""
    return Quantizers(self.position, self.rotation_scale, self.color)

  def gaussian_budget(self, num_pixels: int) -> int:
    """N, whatever the size of the picture."""
    del num_pixels
    return self.num_gaussians

  def check(self, channels: int) -> None:
    """Raises ValueError where an option is out of range or a quantizer does not take its rows."""
    check_number('num_gaussians', self.num_gaussians, 1, MAX_GAUSSIANS)
    check_number('num_clusters', self.num_clusters, 1, MAX_CLUSTERS)
    if self.order not in ORDERS:
      raise ValueError(f'order: wanted one of {", ".join(ORDERS)}, got {self.order!r}')
    key, mask = jax.random.key(0), jnp.ones(1, bool)
    for attribute, columns in columns_of(channels).items():
      quantizer: Quantizer = getattr(self, attribute)
      rows = jnp.zeros((1, columns))
      got: Any = None
      with contextlib.suppress(ValueError, TypeError):
        params = jax.eval_shape(quantizer.init, key, rows, mask, rows)
        out = jax.eval_shape(quantizer.quantize, params, rows, mask)
        got = out.value.shape[1:], out.symbols.shape[1:]
      if got != ((columns,), (len(quantizer.alphabets),)):
        hint = f': make the method with channels={channels}' if attribute == 'color' else ''
        raise ValueError(
          f'method {self.name!r}: wanted {attribute} quantized in {columns} columns'
          f' for {channels} channels, got a quantizer of others{hint}'
        )

  def stages(self, target: Float[np.ndarray, 'H W C'], settings: FitSettings) -> Stages:
    """Fit, then cluster and fine-tune; finishes with `CodebookSymbols`."""
    fit_key, finetune_key = jax.random.split(jax.random.key(settings.seed))
    return [
      lambda _: fit_stage(fit_key, target, self.num_gaussians, settings),
      lambda gaussians: clustered_stage(self, finetune_key, gaussians, target, settings),
    ]


@struct.dataclass
class Trained:
  """What the optimizer moves: the Gaussians, and the quantizers' params (leading axis K)."""

  gaussians: Gaussians
  quantizers: Rows


@struct.dataclass
class Context:
  """What stays fixed while an image is fine-tuned."""

  clusters: Clusters
  size: Float[Array, '2']  # width, height, px


# Half the fit's rates: the Gaussians are near their places and follow the rounding. Steps and
# offsets (log px, radians) move by a few hundredths of a quantizer step each.
RATES: Any = Trained(
  gaussians=optimizers.rates(mean_xy=0.4, log_scale=0.08, rotation=0.08, color=0.02),
  quantizers=2e-3,  # pyright: ignore[reportArgumentType]  (a prefix of the tree)
)
# What rounding the positions may cost, of the squared error that the fit has left.
POSITION_SHARE = 0.05


def adam(steps: int) -> optax.GradientTransformation:
  """The fit's, in pixels, with rates that end lower: rounding turns late movements into noise."""
  return optimizers.adam(steps, RATES, b2=0.94, final=0.01, frame=optimizers.pixel_frame)


def to_rows(gaussians: Gaussians, size: Float[Array, '2']) -> Rows:
  """The Gaussians as the quantizers see them; `from_rows` is the inverse."""
  return Rows(
    position=2 * gaussians.mean_xy / size - 1,
    rotation_scale=jnp.concatenate([gaussians.rotation[:, None], gaussians.log_scale], axis=-1),
    color=gaussians.color,
  )


def from_rows(rows: Rows, size: Float[Array, '2']) -> Gaussians:
  """Gaussians in px from rows."""
  return Gaussians(
    mean_xy=(rows.position + 1) * size / 2,
    log_scale=rows.rotation_scale[:, 1:],
    rotation=rows.rotation_scale[:, 0],
    color=rows.color,
  )


def equal_slope_steps(
  gaussians: Gaussians, size: Float[Array, '2'], squared_error: Float[Array, '']
) -> Rows:
  """For each number of the rows the step at which rounding costs the picture as much as any other.

  step = sqrt(12 L / H), H the curvature in the units of the rows. L, the squared error that a
  number may add, is such that all coordinates of the means add POSITION_SHARE of `squared_error`,
  which is the fit's, summed over pixels and channels.
  """
  allowed = POSITION_SHARE * squared_error / (2 * gaussians.num_gaussians)
  of = sensitivity(gaussians)
  rows = Rows(
    position=of.mean_xy * (size / 2) ** 2,
    rotation_scale=jnp.concatenate([of.rotation[:, None], of.log_scale], axis=-1),
    color=of.color,
  )
  return jax.tree.map(lambda h: jnp.sqrt(12 * allowed / jnp.maximum(h, 1e-30)), rows)


def _each(quantizers: Quantizers, function: Callable[..., Any], *rows: Rows) -> Rows:
  """Applies `function(quantizer, *values)` to each attribute."""
  return Rows(
    **{a: function(getattr(quantizers, a), *(getattr(r, a) for r in rows)) for a in ATTRIBUTES}
  )


@lru_cache
def forward_through(quantizers: Quantizers) -> ForwardFn:
  """The forward function of a fine-tuning step: quantize every cluster, dequantize, join.

  Steps and offsets learn by gradient, codebooks by moving averages. Both are in `Trained`; the
  carry is how far the moving averages have taken them, to which the optimizer adds nothing.
  """

  def forward(params: Trained, carry: Rows, context: Context) -> Forward:
    clusters = context.clusters
    effective = jax.tree.map(jnp.add, params.quantizers, jax.lax.stop_gradient(carry))

    @jax.named_scope('quantize')
    def quantize(quantizer: Quantizer, quantizer_params: Params, rows):
      padded = split(rows, clusters)
      return jax.vmap(quantizer.quantize)(quantizer_params, padded, clusters.mask)

    rows = to_rows(params.gaussians, context.size)
    quantized = _each(quantizers, quantize, effective, rows)
    moved = jax.tree.map(
      lambda new, old, moved: jax.lax.stop_gradient(new - old) + moved,
      _each(quantizers, lambda _, q: q.params, quantized),
      effective,
      carry,
    )
    values = _each(quantizers, lambda _, q: join(q.value, clusters), quantized)
    # Each cluster's loss is a mean over its members; weighted, the sum is a mean over them all.
    share = clusters.counts / jnp.sum(clusters.counts)
    losses = [jnp.sum(share * getattr(quantized, a).loss) for a in ATTRIBUTES]
    penalty = jnp.sum(jnp.stack(losses))
    return Forward(from_rows(values, context.size), moved, penalty)

  return forward


@partial(jax.jit, static_argnames='quantizers')
def _initial_params(key, gaussians, context, squared_error, quantizers):
  def init(quantizer: Quantizer, rows, steps, key):
    padded, steps = (split(array, context.clusters) for array in (rows, steps))
    keys = jax.random.split(key, context.clusters.num_clusters)
    return jax.vmap(quantizer.init)(keys, padded, context.clusters.mask, steps)

  keys = Rows(*jax.random.split(key, len(ATTRIBUTES)))
  steps = equal_slope_steps(gaussians, context.size, squared_error)
  return _each(quantizers, init, to_rows(gaussians, context.size), steps, keys)


def make_context(labels: np.ndarray, num_clusters: int, height: int, width: int) -> Context:
  """The padded cluster layout and the image's size."""
  return Context(layout(labels, num_clusters), jnp.array([width, height], jnp.float32))


@partial(jax.jit, static_argnames='quantizers')
def _symbols(params, gaussians, context, quantizers):
  def quantize(quantizer: Quantizer, quantizer_params, rows):
    padded = split(rows, context.clusters)
    quantized = jax.vmap(quantizer.quantize)(quantizer_params, padded, context.clusters.mask)
    return quantized.symbols

  return _each(quantizers, quantize, params, to_rows(gaussians, context.size))


def quantize(
  state: FitState, context: Context, method: CodebookMethod, height: int, width: int
) -> CodebookSymbols:
  """The state as the integers that a file holds.

  The codebooks are rounded to what the file can store first, and every row is quantized again
  with them, so the decoder's numbers are the ones that were chosen from.
  """
  trained: Trained = state.params
  params = jax.tree.map(jnp.add, trained.quantizers, state.carry)
  tables = _each(method.quantizers, lambda quantizer, p: quantizer.tabulate(p), params)
  restored = _each(method.quantizers, lambda q, t: q.dequantizer.restore(t, q.alphabets), tables)
  symbols = _symbols(restored, trained.gaussians, context, method.quantizers)
  mask = np.asarray(context.clusters.mask)

  def stream(quantizer: Quantizer, table, symbols):
    ordered = np.asarray(symbols)[mask]  # cluster by cluster
    return Stream(quantizer.name, quantizer.alphabets, table, ordered.astype(np.int32))

  streams = _each(method.quantizers, stream, tables, symbols)
  return CodebookSymbols(
    height=height,
    width=width,
    channels=trained.gaussians.num_channels,
    method=method.name,
    counts=np.asarray(context.clusters.counts, np.int32),
    order=method.order,
    **{a: getattr(streams, a) for a in ATTRIBUTES},
  )


def decoded_psnr(
  symbols: CodebookSymbols, target: np.ndarray, dequantizers: Mapping[str, Dequantizer]
) -> float:
  """PSNR (dB) of the 8-bit image that the symbols decode to."""
  image = rasterize(dequantize(symbols, dequantizers), symbols.height, symbols.width)
  return psnr(to_bytes8(target), to_bytes8(np.asarray(image)))


@struct.dataclass
class Best:
  """The state so far whose decoded 8-bit picture has the highest PSNR."""

  state: FitState
  psnr: Float[Array, '']  # dB


def clustered_stage(
  method: CodebookMethod,
  key: PRNGKeyArray,
  gaussians: Gaussians,
  target: Float[np.ndarray, 'H W C'],
  settings: FitSettings,
) -> Stage:
  """Clusters the fitted Gaussians: the stage 'finetune' of as many clusters, at most one each."""
  height, width, _ = target.shape
  gaussians = jax.tree.map(jnp.asarray, canonical(gaussians))
  num_clusters = min(method.num_clusters, gaussians.num_gaussians)
  cluster_key, codebook_key = jax.random.split(key)
  labels = cluster(cluster_key, gaussians, num_clusters)
  context = make_context(np.asarray(labels), num_clusters, height, width)
  return finetune_stage(method, codebook_key, gaussians, context, target, settings)


def finetune_stage(
  method: CodebookMethod,
  key: PRNGKeyArray,
  gaussians: Gaussians,
  context: Context,
  target: Float[np.ndarray, 'H W C'],
  settings: FitSettings,
) -> Stage:
  """The stage 'finetune': trains canonical Gaussians together with the codebooks of their clusters.

  After every block the state is quantized, decoded and measured, so the best is best by the
  decoded picture and not by the loss.
  """
  height, width, _ = target.shape
  optimizer, loss = adam(settings.finetune_steps), functions_of(settings).loss
  start = initial_finetune_state(key, gaussians, context, target, method, optimizer)
  dequantizers = {q.name: q.dequantizer for q in method.quantizers}
  pixels = np.asarray(target)

  def symbols_of(state: FitState) -> CodebookSymbols:
    return quantize(state, context, method, height, width)

  def with_best(current: FitState, best: Best) -> tuple[StageState, float]:
    psnr = decoded_psnr(symbols_of(current), pixels, dequantizers)
    if psnr > best.psnr:
      best = Best(current, jnp.array(psnr))
    return StageState(current, best), psnr

  def after_block(state: StageState, progress: Progress) -> tuple[StageState, Progress]:
    state, psnr = with_best(state.current, state.memory)
    return state, progress._replace(psnr=psnr)

  return Stage(
    name='finetune',
    num_steps=settings.finetune_steps,
    target=padded_target(target, loss),
    start=with_best(start, Best(start, jnp.array(-jnp.inf)))[0],
    forward=forward_through(method.quantizers),
    optimizer=optimizer,
    loss=loss,
    next_block=blocks_of(settings.finetune_steps, place(context)),
    after_block=after_block,
    finish=lambda state: symbols_of(state.memory.state),
  )


def initial_finetune_state(
  key: PRNGKeyArray,
  gaussians: Gaussians,
  context: Context,
  target: Float[np.ndarray, 'H W C'],
  method: CodebookMethod,
  optimizer: optax.GradientTransformation,
) -> FitState:
  """Quantizers fitted to the Gaussians as they are, before the first step."""
  height, width, _ = target.shape
  squared_error = jnp.sum(jnp.square(rasterize(gaussians, height, width) - target))
  params = _initial_params(key, gaussians, context, squared_error, method.quantizers)
  carry = jax.tree.map(jnp.zeros_like, params)
  return initial_state(Trained(gaussians, params), carry, optimizer)
