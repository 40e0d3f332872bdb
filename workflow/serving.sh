#!/usr/bin/env bash
# Lay the kit into a new environment with what serves exported models on a processor, and nothing else: the extras `serve`,
# `app` and `hospital`, without torch. The Dockerfile does the same.
set -euo pipefail
place=${1:?name a folder that is not there yet}
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/tools"
"$python" -m venv --without-pip "$place"
pip() { "$work/tools/bin/python" -m pip -q --disable-pip-version-check "$@"; }
pip wheel --no-deps -w "$work" "$source"
"$python" - "$source/settings.ini" > "$work/names" <<'NAMES'
import sys
from configparser import ConfigParser

settings = ConfigParser(delimiters=["="])
settings.read(sys.argv[1], encoding="utf-8")
names = [settings["DEFAULT"][f"{extra}requirements"].split() for extra in ("", "serve_", "app_", "hospital_")]
print("\n".join(n for n in dict.fromkeys(sum(names, [])) if n not in ("torch", "safetensors")))
NAMES
pip --python "$place/bin/python" install --no-compile -r "$work/names"
pip --python "$place/bin/python" install --no-compile --no-deps "$work"/medseg_nb-*.whl
find "$place" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -r {} +
echo "$place/bin/medseg: $(du -sm "$place" | cut -f1) MB; exported models, no torch"
