"""A Gaussian image codec in pure JAX: `import cgvq_jax as cg`."""

from cgvq_jax import cores, fit, images, initialize, losses, methods, metrics, quantize, rasterize
from cgvq_jax.bitstream.container import ContainerError
from cgvq_jax.codec import Decoded, decode, encode, render
from cgvq_jax.fit import FitError
from cgvq_jax.methods import Method
from cgvq_jax.types import Gaussians, Quantized, Quantizer

__all__ = [
  'ContainerError',
  'Decoded',
  'FitError',
  'Gaussians',
  'Method',
  'Quantized',
  'Quantizer',
  'cores',
  'decode',
  'encode',
  'fit',
  'images',
  'initialize',
  'losses',
  'methods',
  'metrics',
  'quantize',
  'rasterize',
  'render',
]
