#!/bin/sh
# ./test.sh [ARGUMENTS]: pytest ARGUMENTS, in the root of this repository and in its .venv, which is set up as by run.sh.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$root/setup.sh"
set_up requirements.txt requirements-export.txt requirements-serve.txt requirements-postgres.txt requirements-fit.txt requirements-imagenet.txt requirements-dev.txt
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
