"""Rendering Gaussians: `api.rasterize` by JAX, with gradients; `renderers.render` for decoding."""
