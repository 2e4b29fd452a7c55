#!/bin/sh
# locked.sh EXTRA [UNUSED ...]: has what the lock file of the extra holds replace what came with torch, and drops what
# torch asks for but nothing loads.
set -eu
lock=requirements/$1.txt
shift
python -m pip --python /opt/venv/bin/python install --no-compile --require-hashes --no-deps --only-binary :all: \
    --force-reinstall $PIP_ARGS -r "$lock"
[ $# -eq 0 ] || python -m pip --python /opt/venv/bin/python uninstall --yes "$@"
sh deploy/image/slim.sh
