"""A Gaussian image codec in pure JAX: `import cgvq_jax as cg`."""

from cgvq_jax import devices, metrics, quantize, rasterize
from cgvq_jax.bitstream.container import ContainerError
from cgvq_jax.codec import Decoded, decode, encode, render
from cgvq_jax.fit import blocks, initialize, losses
from cgvq_jax.fit.blocks import FitError
from cgvq_jax.io import datasets, images
from cgvq_jax.methods import registry as methods
from cgvq_jax.methods.registry import Method
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.quantize.base import Quantized, Quantizer

__all__ = [
  'ContainerError',
  'Decoded',
  'FitError',
  'Gaussians',
  'Method',
  'Quantized',
  'Quantizer',
  'blocks',
  'datasets',
  'decode',
  'devices',
  'encode',
  'images',
  'initialize',
  'losses',
  'methods',
  'metrics',
  'quantize',
  'rasterize',
  'render',
]
