#!/usr/bin/env bash
# Installs, compresses a sample photograph, decodes it in a new process and shows how it went.
# Writes quickstart/: photo.png, photo.cgvq, decoded.png, side_by_side.png.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

mkdir -p quickstart
cgvq sample quickstart/photo.png
started=$SECONDS
cgvq encode quickstart/photo.png quickstart/photo.cgvq
encode_seconds=$((SECONDS - started))
cgvq decode quickstart/photo.cgvq quickstart/decoded.png
cgvq compare quickstart/photo.png quickstart/photo.cgvq \
  --encode_seconds "$encode_seconds" --picture quickstart/side_by_side.png
