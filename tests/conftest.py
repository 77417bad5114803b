"""What all tests share: the --slow option, and GPU tests that say why they were skipped."""

from __future__ import annotations

import jax
import pytest

# Before JAX does anything: fits are shared by several devices, as the commands do it.
jax.config.update('jax_num_cpu_devices', 2)


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
  has_gpu = any(device.platform == 'gpu' for device in jax.devices())
  for item in items:
    if 'slow' in item.keywords and not config.getoption('--slow'):
      item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))
    if 'gpu' in item.keywords and not has_gpu:
      item.add_marker(pytest.mark.skip(reason='needs an NVIDIA GPU, and JAX sees none'))
