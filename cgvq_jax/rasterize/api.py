"""The one operation, by name: `rasterize(gaussians, height, width)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Array, Float

from cgvq_jax.rasterize import pallas, reference, xla
from cgvq_jax.types import Gaussians

_IMPLEMENTATIONS: dict[str, Callable] = {
  'reference': reference.rasterize,
  'xla': xla.rasterize,
  'pallas': pallas.rasterize,  # an NVIDIA GPU's
  'pallas_interpret': partial(pallas.rasterize, run=pallas.INTERPRETER),  # anywhere, to check them
}

MAX_SIDE = 65_535  # px
CHANNELS = (1, 3, 4)


def implementations() -> tuple[str, ...]:
  """Names that `rasterize(implementation=...)` takes."""
  return tuple(_IMPLEMENTATIONS)


def validate(gaussians: Gaussians, height: int, width: int) -> None:
  """Raises ValueError where the sizes cannot be rendered: name, wanted, got."""
  if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
    raise ValueError(f'image size: wanted 1 to {MAX_SIDE} px a side, got {height=} {width=}')
  n, channels = gaussians.color.shape
  wanted = {'mean_xy': (n, 2), 'log_scale': (n, 2), 'rotation': (n,), 'color': (n, channels)}
  got = {name: getattr(gaussians, name).shape for name in wanted}
  if n < 1 or got != wanted:
    raise ValueError(f'gaussians: wanted N >= 1 and shapes {wanted}, got {got}')
  if channels not in CHANNELS:
    raise ValueError(f'color channels: wanted one of {CHANNELS}, got {channels}')


def rasterize(
  gaussians: Gaussians, height: int, width: int, *, implementation: str | None = None
) -> Float[Array, 'H W C']:
  """I(p) = sum_i c_i exp(-q_i(p)), q_i <= ln 255 (see `reference`), unclamped; differentiable.

  `implementation` names one of `implementations()`; None takes the fastest for the platform.
  Raises ValueError on an unknown name or impossible sizes. May be called inside `jax.jit`.
  """
  name = implementation or 'xla'
  if name not in _IMPLEMENTATIONS:
    raise ValueError(f'{implementation=}: wanted one of {sorted(_IMPLEMENTATIONS)}')
  validate(gaussians, height, width)
  return _IMPLEMENTATIONS[name](gaussians, height, width)
