#!/bin/sh
# check-torch.sh DEVICE: ends the build where the torch in /opt/venv is not built for the device.
set -eu
read -r version cuda <<X
$(/opt/venv/bin/python -W ignore -c 'import torch; print(torch.__version__, torch.version.cuda)')
X
case "$1 $cuda" in
"cpu None") ;;
cpu\ *) echo "note: torch $version holds a GPU's libraries; PIP_ARGS can name where pip finds a CPU-only one" >&2 ;;
"cuda None")
    echo "error: DEVICE is cuda, but pip found torch $version, which knows no GPU: see PIP_ARGS and TORCH" >&2
    exit 2
    ;;
cuda\ *) ;;
*)
    echo "error: DEVICE is '$1': must be cpu or cuda" >&2
    exit 2
    ;;
esac
