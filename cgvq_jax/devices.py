"""The JAX devices that work on one image, and the compiler's options for each platform."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
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
  """Clears all caches of compiled programs once this process has half of the memory mappings that
  Linux allows; returns whether it did.

  A program for a CPU takes hundreds of mappings, and without any left the compiler aborts the
  process. `call` keeps few programs, but `jax.jit` keeps all: those of an extension's own code, or
  of whatever else the process does. Programs that are needed again are compiled again.

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
  drop_programs()
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


# --- compiled programs ---

# A program of a fit takes some 20 MiB, and hundreds of the memory mappings that Linux grants a
# process. An encode has four or five, and pictures of about one size share them.
_MAX_PROGRAMS = 24
_programs: OrderedDict[Hashable, Any] = OrderedDict()
_programs_lock = threading.Lock()


def call(function: Callable[..., Any], *arguments: Any, **static: Any) -> Any:
  """`function(*arguments, **static)`, compiled for these shapes and these hashable static values.

  Like `jax.jit`, which keeps every program that a process has ever compiled; here the programs that
  were used last are kept, and so a process that meets many shapes lives on. `arguments` are
  pytrees of arrays, all on the devices of `place` or in NumPy.
  """
  leaves, tree = jax.tree.flatten(arguments)
  shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
  key = function, tuple(sorted(static.items())), tree, shapes, mesh()
  with _programs_lock:
    program = _programs.pop(key, None)
  if program is None:
    clear_programs_if_many()
    lowered = jax.jit(partial(function, **static)).lower(*arguments)
    program = lowered.compile(compiler_options=compiler_options())
    _return_freed_memory()
  with _programs_lock:
    _programs[key] = program
    while len(_programs) > _MAX_PROGRAMS:
      _programs.popitem(last=False)
  return program(*arguments)


@lru_cache
def _malloc_trim() -> Callable[[int], int] | None:
  return getattr(ctypes.CDLL(None), 'malloc_trim', None) if os.name == 'posix' else None


def _return_freed_memory() -> None:
  """Returns to the system what the compiler has freed, which glibc keeps: some 30 MiB a program."""
  trim = _malloc_trim()
  if trim is not None:
    trim(0)


def drop_programs() -> None:
  """Forgets all the programs of `call`."""
  with _programs_lock:
    _programs.clear()


def place(tree: Any) -> Any:
  """Puts arrays on all the devices that work on one image; nothing moves where they are already."""
  return jax.device_put(tree, NamedSharding(mesh(), P()))


def fetch(tree: Any) -> Any:
  """Puts arrays on one device: host steps and callers do not expect arrays of several."""
  return jax.device_put(tree, jax.local_devices()[0])


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
