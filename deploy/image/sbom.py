"""Write the software bill of materials of an environment: ``sbom.py ENVIRONMENT OUT``, CycloneDX in JSON.

It is cyclonedx-py's, and ours where a package's metadata name no licence: the text of its licence file.
"""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

environment, out = map(Path, sys.argv[1:])
command = [Path(sys.executable).with_name("cyclonedx-py"), "environment", environment / "bin" / "python"]
options = ["--pyproject", "pyproject.toml", "--output-reproducible"]
output = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE).stdout  # nosec B603 # noqa: S603 (no shell, no words of others)
sbom = json.loads(output)
packages = {found.name: found for found in distributions(path=[str(*environment.glob("lib/python3.*/site-packages"))])}
for component in sbom["components"]:
    if not component.get("licenses"):
        files = [file for file in packages[component["name"]].files or () if file.name.lower().startswith("licen")]
        component["licenses"] = [
            {"license": {"name": f"{file.name} of {component['name']}", "text": {"content": file.read_text()}}}
            for file in files
        ]
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps(sbom, indent=1))
