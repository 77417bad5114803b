"""Gaussians to integers and back: quantizers for the encoder, dequantizers without JAX."""
