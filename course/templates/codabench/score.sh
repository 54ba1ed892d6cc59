#!/bin/sh
# Codabench runs this for every submission, as metadata.yaml says: score.sh INPUT OUTPUT. In an image that has the packages (see
# Dockerfile) pip finds nothing to do; elsewhere it installs them each time, which takes minutes and the network.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(command -v python3 || command -v python)
"$python" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore -r "$here/grader/requirements.txt"
exec "$python" -B "$here/grader/grade.py" codabench "$1/res" "$2" --data "$1/ref/data.npz"
