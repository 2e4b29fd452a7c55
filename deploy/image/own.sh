#!/bin/sh
# own.sh MODULE ...: puts our wheel and the SBOM into /own, which is copied over /opt/venv. Importing the modules shows
# that nothing they need was dropped, and leaves the bytecode of all that they load, and of nothing else.
set -eu
/opt/tools/bin/python -m build --wheel --no-isolation --outdir /wheels . >/dev/null
python -m pip --python /opt/venv/bin/python install --no-deps --no-index --no-warn-script-location --prefix /own /wheels/*.whl
for module in "$@"; do
    PYTHONPATH=$(echo /own/lib/python3.*/site-packages) PYTHONSAFEPATH=1 /opt/venv/bin/python -W ignore -c "import $module"
done
/opt/tools/bin/python sbom.py /opt/venv /own/share/glow-service/sbom.cdx.json
