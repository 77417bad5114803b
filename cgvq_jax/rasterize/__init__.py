"""Rendering Gaussians: `api.rasterize` by JAX, with gradients; `renderers.render` for decoding."""

from cgvq_jax.extensions import lazy_modules

__getattr__ = lazy_modules(__name__)
