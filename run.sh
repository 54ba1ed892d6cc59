#!/bin/sh
# ./run.sh [ARGUMENTS]: python main.py ARGUMENTS, in this repository's .venv, which the first run sets up.
# PYTHON=/path/to/python ./run.sh chooses the interpreter.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$root/setup.sh"
set_up requirements.txt
exec "$venv/bin/python" "$root/main.py" "$@"
