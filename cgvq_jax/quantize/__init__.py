"""Gaussians to integers and back; the quantizers are modules: `cg.quantize.vector.residual()`."""

from cgvq_jax.extensions import lazy_modules

__getattr__ = lazy_modules(__name__)
