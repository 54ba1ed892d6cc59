#!/bin/bash
# Gradescope runs this once, as root, when it builds the autograder's image (Ubuntu 22.04 or newer). AUTOGRADER names another
# folder than /autograder, to try it elsewhere.
set -eu
root=${AUTOGRADER:-/autograder}
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv libseccomp2
[ -x "$root/venv/bin/python" ] || python3 -m venv "$root/venv"
"$root/venv/bin/python" -m pip install --disable-pip-version-check --no-input -r "$root/source/grader/requirements.txt"
# A submission runs as a user of its own, who needs the grader's code and must not read the labels.
chmod -R a+rX "$root/source/grader"
[ ! -e "$root/source/grader/data.npz" ] || chmod 600 "$root/source/grader/data.npz"
"$root/venv/bin/python" -B "$root/source/grader/grade.py" fetch
