#!/bin/sh
# ./run_inference.sh [IMAGE|FOLDER ...]: python main.py predict IMAGE|FOLDER ..., in the .venv of run.sh.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$root/setup.sh"
set_up requirements.txt
exec "$venv/bin/python" "$root/main.py" predict "$@"
