"""Holds a bill of materials to the schema of CycloneDX, and to Cargo.lock."""

import json
import pathlib
import sys
import tomllib

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = pathlib.Path(sys.argv[1]).read_text()
if error := JsonStrictValidator(SchemaVersion.V1_5).validate_str(text):
    sys.exit(f"{sys.argv[1]}: {error}")
bom = json.loads(text)
components = {(it["name"], it["version"]): it for it in bom["components"]}
lock = tomllib.loads(pathlib.Path("Cargo.lock").read_text())
locked = {(it["name"], it["version"]): it.get("checksum") for it in lock["package"]}
for key, component in components.items():
    if [it["content"] for it in component.get("hashes", [])] != [locked[key]] or "licenses" not in component:
        sys.exit(f"{key}: {component}")
for needed in ["tonic", "tokio", "nix", "object"]:
    if not any(name == needed and it["scope"] == "required" for (name, _), it in components.items()):
        sys.exit(f"{needed} is not in it")
# Of tests only, and of the build only.
if any(name == "proptest" for name, _ in components) or components[next(k for k in components if k[0] == "protox")]["scope"] != "excluded":
    sys.exit("what is not linked is there as if it were")
print(f"{len(components)} components")
