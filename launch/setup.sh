#!/usr/bin/env bash
# Sourced by the other scripts: makes the virtual environment $VENV (default .venv) with what they
# need, CUDA wheels where an NVIDIA GPU answers, CPU wheels otherwise; does nothing where it is there.
#   source launch/setup.sh [EXTRA]     EXTRA: an extra of pyproject.toml, such as test
#   PYTHON=python3.12 VENV=.venv-3.12  choose another interpreter or place

setup_extra=${1:-}
setup_venv=${VENV:-.venv}
setup_python=${PYTHON:-python3}

if ! "$setup_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "launch: wanted Python 3.11 or newer, got $("$setup_python" --version 2>&1 | head -n 1)." \
    "Name another with PYTHON=..." >&2
  exit 2
fi

if nvidia-smi -L >/dev/null 2>&1; then
  setup_requirements=requirements.txt
else
  setup_requirements=requirements-cpu.txt
  # A CUDA build of JAX on a machine without a GPU would log a failure to find one.
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
fi

# A stamp of all that decides what is installed: a change installs again, nothing else does.
setup_stamp=$({ "$setup_python" --version; echo "$setup_requirements $setup_extra"; \
  cat requirements*.txt pyproject.toml; } | cksum)
if [ "$(cat "$setup_venv/.installed${setup_extra:+-$setup_extra}" 2>/dev/null)" != "$setup_stamp" ]; then
  echo "Installing $setup_requirements${setup_extra:+ and the $setup_extra extra} into $setup_venv ..."
  "$setup_python" -m venv "$setup_venv"
  "$setup_venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r "$setup_requirements" -e ".${setup_extra:+[$setup_extra]}"
  echo "$setup_stamp" >"$setup_venv/.installed${setup_extra:+-$setup_extra}"
fi
# shellcheck disable=SC1091
source "$setup_venv/bin/activate"

# Programs compiled by one process serve the next: each command starts seconds sooner.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/$setup_venv/jax-cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}
