"""Codec variants: `cg.methods.cgvq_rd(channels=3, quality=50)`; names are those of `registry`."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
  return getattr(importlib.import_module('cgvq_jax.methods.registry'), name)
