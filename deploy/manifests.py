"""Validate the Kubernetes manifests against the schemas of the API, without a cluster.

If `kubectl` is on `PATH`, this validates the output of `kubectl kustomize` for each overlay,
otherwise the resources as written. `make check` runs it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml  # type: ignore[import-untyped]

FOLDER = Path(__file__).with_name("kubernetes")
OVERLAYS = ("bundled", "gpu")
VERSIONS = ("1.31", "1.37")
"""The oldest and the latest version of Kubernetes that the manifests are validated for."""
SECONDS = 60.0
Document = dict[str, Any]

LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "jobLabel": {"type": "string"},
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": LABELS},
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["port"],
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                            "authorization": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["credentials"],
                                "properties": {
                                    "credentials": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "required": ["name", "key"],
                                        "properties": {
                                            "name": {"type": "string"},
                                            "key": {"type": "string"},
                                        },
                                    }
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""Schema of a ServiceMonitor, with only the fields that the manifests use. The Prometheus operator
defines this kind, so the schemas of Kubernetes do not contain it."""


def load(path: Path) -> list[Document]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def written() -> Iterator[Document]:
    """Yield every resource that a kustomization lists, as written."""
    for path in sorted(FOLDER.rglob("kustomization.yaml")):
        for name in load(path)[0].get("resources", []):
            if (file := path.parent / name).is_file():
                yield from load(file)


def rendered(overlay: str, kubectl: str) -> list[Document]:
    """Return the documents that `kubectl kustomize` renders for an overlay.

    Raises:
        subprocess.CalledProcessError: `kubectl` refuses the overlay.
    """
    made = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)],
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def mistake(document: Document) -> str | None:
    """Return the mistake that a schema finds in a document; None if there is none."""
    name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
    try:
        if document["kind"] == "ServiceMonitor":
            jsonschema.validate(document, MONITOR)
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        place = "/".join(str(step) for step in error.path)
        return f"{name}: {place}: {error.message}"
    except (KeyError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{name}: there is no schema for this kind ({error!r})"
    return None


def main() -> int:
    """Validate all manifests, and return the exit code."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        documents = list(written())
    else:
        documents = [one for overlay in OVERLAYS for one in rendered(overlay, kubectl)]
    found = [said for document in documents if (said := mistake(document))]
    for said in found:
        print(f"deploy/kubernetes: {said}", file=sys.stderr)
    how = "as written (there is no kubectl)" if kubectl is None else f"of {', '.join(OVERLAYS)}"
    print(f"{len(documents)} Kubernetes documents {how}: {len(found)} mistakes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
