#!/usr/bin/env bash
# Sourced after setup.sh: puts compilers for NVIDIA GPUs and TPUs into $VENV/compilers, apart from
# the packages, so that programs for them can be made and checked on a machine that has neither. On a
# system that has no such wheels it says so and goes on: the checks that need them are then skipped.

compilers_folder=${CGVQ_COMPILERS:-$(python -c 'import sys; print(sys.prefix)')/compilers}
# The versions that the installed JAX asks for.
compilers_wanted=$(python - <<'PYTHON'
from importlib import metadata
from packaging.requirements import Requirement

version = metadata.version('jaxlib')
extras = map(Requirement, metadata.requires('jax') or [])
libtpu = next(str(r.specifier) for r in extras if r.name == 'libtpu')
print(f'jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cuda-nvcc-cu12==12.9.* libtpu{libtpu}')
PYTHON
)
if [ "$(cat "$compilers_folder/.installed" 2>/dev/null)" != "$compilers_wanted" ]; then
  echo "Installing $compilers_wanted into $compilers_folder ..."
  rm -rf "$compilers_folder"
  # shellcheck disable=SC2086
  if python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$compilers_folder" $compilers_wanted; then
    echo "$compilers_wanted" >"$compilers_folder/.installed"
  else
    rm -rf "$compilers_folder"
    echo "launch: no such wheels here; compiling for GPUs and TPUs is not checked" >&2
  fi
fi
