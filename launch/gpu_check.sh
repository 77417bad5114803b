#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, in under ten minutes: every GPU test, then the benchmark. Prints one
# table and writes gpu_check.json (or FILE) for docs/RESULTS.md.
#   launch/gpu_check.sh [FILE]
#   SECONDS_TO_MEASURE=240             begin no row of the table after so many seconds
#   PYTHON=python3.12                  used as it is if its JAX sees the GPU; else an environment is
#                                      set up in $VENV, which needs a network
# Exits with 0 if every test passed and the table was made, 3 if there is no GPU, else with 1.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-gpu_check.json}
python=${PYTHON:-python3}
started=$SECONDS

if ! nvidia-smi -L; then
  echo "skipped: no NVIDIA GPU answers nvidia-smi, so nothing was checked" >&2
  exit 3
fi
# Several test processes share the device.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset JAX_PLATFORMS
needed='import jax, pytest, xdist, hypothesis, cgvq_jax; jax.devices("gpu")'
if ! "$python" -c "$needed" 2>/dev/null; then
  source launch/setup.sh test || exit 1
  python=python
fi
"$python" - <<'PYTHON' || exit 1
import platform
import jax
import jaxlib
print(f'{jax.devices("gpu")[0].device_kind}, Python {platform.python_version()},'
      f' JAX {jax.__version__}, jaxlib {jaxlib.__version__}')
PYTHON

failed=0
"$python" -m pytest -q -n 6 --dist worksteal -p no:cacheprovider -m gpu tests || failed=1
# Fits, which CI runs on a CPU: here with the kernels that the platform chooses by default.
"$python" -m pytest -q -n 4 --dist worksteal -p no:cacheprovider -m accelerated tests || failed=1
echo "tests: $((SECONDS - started)) s"

"$python" -m cgvq_jax.benchmark gpu --seconds "${SECONDS_TO_MEASURE:-240}" --json "$output" || failed=1
echo "all: $((SECONDS - started)) s, $([ $failed = 0 ] && echo passed || echo FAILED)"
exit $failed
