#!/usr/bin/env python3
"""Writes the bill of materials of the two programs as CycloneDX JSON to standard output.

    deploy/release/sbom.py [--target x86_64-unknown-linux-gnu] >codecached.cdx.json

It is made of Cargo.lock, as `cargo metadata` resolves it: the crates that the programs are linked from for the target and
those that only run while they are built ("excluded" in CycloneDX), but not those of tests. The same lock file gives the
same bytes. Needs cargo and nothing else.
"""

import argparse
import json
import pathlib
import subprocess
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN = "codecached"


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def reached(nodes, root):
    """Ids of the packages that are linked, and of those that are only run by a build."""
    linked, built, waiting = set(), set(), [(root, False)]
    while waiting:
        package, for_build = waiting.pop()
        place = built if for_build else linked
        if package in place:
            continue
        place.add(package)
        for dependency in nodes[package]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if None in kinds:
                waiting.append((dependency["pkg"], for_build or dependency["pkg"] in macros))
            if "build" in kinds:
                waiting.append((dependency["pkg"], True))
    return linked, built - linked


def component(package, checksums, scope):
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    made = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "scope": scope}
    if package["license"]:
        # Cargo's older spelling of OR.
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((name, version)):
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        made["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return made


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--target", default="x86_64-unknown-linux-gnu", help="triple to link for [default: %(default)s]")
found = metadata(parser.parse_args().target)

lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
checksums = {(it["name"], it["version"]): it["checksum"] for it in lock["package"] if "checksum" in it}
packages = {package["id"]: package for package in found["packages"]}
nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
# They run in the compiler, whoever uses them.
macros = {id for id, it in packages.items() if any("proc-macro" in target["kind"] for target in it["targets"])}
root = found["resolve"]["root"]
linked, built = reached(nodes, root)

components = [component(packages[id], checksums, "required") for id in linked - {root}]
components += [component(packages[id], checksums, "excluded") for id in built]
components.sort(key=lambda it: it["bom-ref"])
refs = {id: f"pkg:cargo/{packages[id]['name']}@{packages[id]['version']}" for id in linked | built}
graph = [
    {"ref": refs[id], "dependsOn": sorted({refs[it["pkg"]] for it in nodes[id]["deps"] if it["pkg"] in refs})}
    for id in linked | built
]
own = packages[root]
bom = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {
        "component": {
            "type": "application",
            "bom-ref": refs[root],
            "name": OWN,
            "version": own["version"],
            "purl": refs[root],
            "licenses": [{"expression": own["license"]}],
        }
    },
    "components": components,
    "dependencies": sorted(graph, key=lambda it: it["ref"]),
}
# Of what it says, so that the same says the same.
bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bom, sort_keys=True))}"
print(json.dumps(bom, indent=2, sort_keys=True))
