"""The JAX devices that work on one image, and the compiler's options for each platform."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

AXIS = 'device'  # the name of the mesh's axis

# Each further device has less to compute and more to gather: a photograph has some thirty rows of
# tiles.
_MAX_DEVICES = 8


def num_usable_cores() -> int:
  """CPU cores that this process may use; all of the machine's where the system has no such limit
  to ask for (macOS)."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def use_all() -> None:
  """Makes each core that this process may use, up to eight, a JAX device, so that they share an
  image.

  Call it before JAX starts a backend, as the commands do; later it has no effect. A number that
  the user has set (JAX_NUM_CPU_DEVICES) stays.
  """
  if jax.config.jax_num_cpu_devices < 1:  # pyright: ignore[reportAttributeAccessIssue]
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', min(num_usable_cores(), _MAX_DEVICES))


class DeviceError(RuntimeError):
  """JAX can start no device; says what to set."""


def check() -> None:
  """Starts JAX's devices.

  Raises:
    DeviceError: there is none of the platforms that JAX shall use.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter without a GPU, and without a word
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    said = (str(error) or 'no such device').splitlines()[0]
    raise DeviceError(
      f'JAX_PLATFORMS={platforms or ""}: wanted a platform that there is here, such as cpu, got:'
      f' {said}'
    ) from error


# What the programs rely on, and the same file from the same seed: the context that sets it, and the
# value. All are JAX's own defaults, which a process may have changed.
_CONFIGURATION: dict[str, tuple[Callable[[Any], contextlib.AbstractContextManager[None]], Any]] = {
  'jax_enable_x64': (jax.enable_x64, False),
  'jax_numpy_dtype_promotion': (jax.numpy_dtype_promotion, 'standard'),
  'jax_numpy_rank_promotion': (jax.numpy_rank_promotion, 'allow'),
  'jax_default_matmul_precision': (jax.default_matmul_precision, None),
  'jax_default_prng_impl': (jax.default_prng_impl, 'threefry2x32'),
  'jax_threefry_partitionable': (jax.threefry_partitionable, True),
  'jax_debug_infs': (jax.debug_infs, False),  # some infinities are meant
}


@contextlib.contextmanager
def own_configuration() -> Iterator[None]:
  """JAX as this package needs it, for this thread, whatever the process has configured.

  Raises:
    DeviceError: as `check`.
  """
  check()
  with contextlib.ExitStack() as stack:
    for name, (context, value) in _CONFIGURATION.items():
      if getattr(jax.config, name) != value:  # a needless context would compile everything again
        stack.enter_context(context(value))
    yield


_MAX_MAPPINGS, _MAPPINGS = Path('/proc/sys/vm/max_map_count'), Path('/proc/self/maps')


def clear_programs_if_many(max_mappings: Path = _MAX_MAPPINGS, mappings: Path = _MAPPINGS) -> bool:
  """Clears JAX's caches of compiled programs once this process has half of the memory mappings that
  Linux allows; returns whether it did.

  A program for a CPU takes hundreds of mappings, and every image needs programs for its own sizes:
  a job of seventy files ended in a segmentation fault of the compiler. Call it between images;
  programs that are needed again are compiled again.

  `max_mappings` is a file that holds the limit, and `mappings` one that has a line for each mapping
  of this process; where they cannot be read (not Linux) nothing is cleared.
  """
  try:
    limit = int(max_mappings.read_text())
    with mappings.open('rb') as lines:
      count = sum(1 for _ in lines)
  except OSError:
    return False
  if count < limit / 2:
    return False
  jax.clear_caches()
  gc.collect()
  return True


@lru_cache
def mesh() -> Mesh:
  """A mesh with the one axis AXIS: all CPU devices, or the first accelerator.

  XLA runs a loop hardly faster on two cores than on one; two CPU devices, each with half of the
  blocks and its own cache, are clearly faster.
  """
  devices = jax.local_devices()
  return Mesh(devices if devices[0].platform == 'cpu' else devices[:1], (AXIS,))


_OPTIONS: dict[str, dict[str, Any]] = {
  # XLA's default of 256-bit vectors loses a fifth of the speed of a CPU that has AVX-512; on others
  # XLA falls back to 256 bits.
  'cpu': {'xla_cpu_prefer_vector_width': 512},
  # The same seed must give the same file. Deterministic operations sum a scatter in the order of
  # its indices, not in the order in which threads arrive, and do not choose the algorithm of a
  # matrix product by timing it. Triton's matrix products are disabled because XLA, with
  # deterministic operations, finds none for the few entries of a cluster (JAX 0.11.2).
  'gpu': {'xla_gpu_deterministic_ops': True, 'xla_gpu_enable_triton_gemm': False},
}


def compiler_options(platform: str | None = None) -> dict[str, Any]:
  """`compiler_options` of `jax.jit` for programs that render; by default for JAX's own platform."""
  return _OPTIONS.get(platform or jax.default_backend(), {})


def over_devices(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` as a program of every device of the mesh, to be jitted (`jax.shard_map`).

  Arguments and results are replicated: each device gets the same arguments and must come to the
  same result. `function` gets `axis=` the mesh's axis, over which the devices exchange data, or
  None where there is one device.
  """
  if mesh().size == 1:
    return partial(function, axis=None)
  run = partial(function, axis=AXIS)
  return jax.shard_map(run, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False)
