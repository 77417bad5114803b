#!/usr/bin/env bash
# Lint, types and tests, in an environment that it makes. Arguments go to pytest.
#   launch/test.sh                  the default tests, under ten minutes on two cores
#   launch/test.sh --slow           the slow ones too
#   launch/test.sh tests/fit/test_driver.py -k nan
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh test
source launch/compilers.sh

ruff check .
ruff format --check .
pyright
# Two workers: most of the time is compilation, which uses one core.
python -m pytest -n 2 --dist loadfile "$@"
