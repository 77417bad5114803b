"""`Gaussians` for whatever uses JAX: importing them from here makes them a pytree."""

from __future__ import annotations

import dataclasses

import jax

from cgvq_jax.primitives.gaussians import Gaussians

__all__ = ['Gaussians']

jax.tree_util.register_dataclass(
  Gaussians, [field.name for field in dataclasses.fields(Gaussians)], []
)
