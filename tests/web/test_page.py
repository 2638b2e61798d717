"""The served explorer page, tested without a browser: headers, parts and references."""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.main import create_app
from service.settings import Settings
from tests.api.wire import problem
from tests.service_process import Served

WEB = Path(__file__).parents[2] / "service" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".md": "text/markdown",
}
LINKS = {"https://arxiv.org/abs/2507.16003"}
"""Links to other sites that the page may have."""
NAMESPACES = {"http://www.w3.org/2000/svg"}
"""XML namespaces, which look like addresses."""
REFERENCES = {
    ".html": re.compile(r'(?:src|href)="([^"#]+)"'),
    ".css": re.compile(r'url\("([^"]+)"\)'),
    ".js": re.compile(r'^(?:import|export) [^;]*?from "([^"]+)"|^import "([^"]+)"', re.MULTILINE),
}


def references(path: str, text: str) -> Iterator[str]:
    """Yield the paths that one part of the page loads, relative to the page."""
    pattern = REFERENCES.get(Path(path).suffix)
    for found in pattern.finditer(text) if pattern else ():
        named = next(group for group in found.groups() if group)
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), named))


@pytest.fixture(scope="module")
def parts(tiny_service: Served) -> dict[str, httpx.Response]:
    """Every part that the page loads, directly or through another part, by path."""
    found: dict[str, httpx.Response] = {}
    with httpx.Client(base_url=tiny_service.url, timeout=60.0) as client:
        text = client.get("/").text
        for link in LINKS:
            text = text.replace(link, "#")
        wanted = [*references("index.html", text)]
        while wanted:
            path = wanted.pop()
            if path in found or path == "docs":
                continue
            found[path] = client.get(f"/{path}")
            if found[path].is_success and not path.endswith(".woff2"):
                wanted += references(path, found[path].text)
    return found


def test_page_is_served_with_its_content_policy(tiny_client: httpx.Client) -> None:
    """`/` is the page, with a policy that allows requests to this service only."""
    page = tiny_client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"
    head = tiny_client.head("/")
    assert head.status_code == 200
    assert not head.content
    assert head.headers["etag"] == page.headers["etag"]


def test_post_to_the_page_returns_405(tiny_client: httpx.Client) -> None:
    """The page and its parts refuse POST with `method_not_allowed`."""
    problem(tiny_client.post("/"), "method_not_allowed")
    problem(tiny_client.post("/web/js/main.js"), "method_not_allowed")


@pytest.mark.parametrize("path", ["/", "/web/js/main.js", "/web/css/theme.css"])
def test_unchanged_part_returns_304(tiny_client: httpx.Client, path: str) -> None:
    """A browser revalidates its copy each time and gets 304 without a body if it is current."""
    first = tiny_client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = tiny_client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content


def test_every_part_is_served_with_its_type(parts: dict[str, httpx.Response]) -> None:
    """The service serves every script, style, font and library of the page, with its media type."""
    assert len(parts) > 30
    for path, part in parts.items():
        assert part.status_code == 200, path
        assert part.headers["content-type"].split(";")[0] == TYPES[Path(path).suffix], path
        assert part.headers["etag"]


def test_package_has_no_unused_part(parts: dict[str, httpx.Response]) -> None:
    """The page uses every script, style and font of the package."""
    there = {
        f"web/{file.relative_to(WEB).as_posix()}"
        for file in WEB.rglob("*")
        if file.suffix in {".js", ".css", ".woff2", ".svg"}
    }
    assert there == {path for path in parts if not path.endswith(".md")}


def test_parts_name_no_other_host(
    tiny_client: httpx.Client, parts: dict[str, httpx.Response]
) -> None:
    """No part names an address outside this service, except the links in the page's text."""
    texts = {
        path: part.text for path, part in parts.items() if not path.endswith((".woff2", ".md"))
    }
    texts["/"] = tiny_client.get("/").text
    for path, text in texts.items():
        if "/vendor/" in path:  # the first line of a library names its source
            text = text.partition("\n")[2]
        found = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w{2,}[^\s"'`)<]*""", text))
        assert found <= LINKS | NAMESPACES, path


def test_references_are_relative(tiny_client: httpx.Client) -> None:
    """The page uses relative paths for its parts, so that it works behind any prefix."""
    named = re.findall(r'(?:src|href)="([^"]+)"', tiny_client.get("/").text)
    assert [name for name in named if name.startswith("/")] == []
    scripts = "".join(file.read_text() for file in (WEB / "js").rglob("*.js"))
    assert not re.search(r"""["'`]/(?:v1|web|docs)""", scripts)


def test_page_works_behind_a_prefix(tmp_path: Path) -> None:
    """If the application is mounted in another one, the page and its parts are below the mount."""

    async def statuses() -> list[int]:
        outer = FastAPI()
        outer.mount("/some/prefix", create_app(Settings(model=str(tmp_path))))
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            paths = ("", "web/js/main.js", "web/vendor/d3/d3-scale.min.js", "docs")
            return [(await client.get(f"/some/prefix/{path}")).status_code for path in paths]

    assert asyncio.run(statuses()) == [200] * 4


def test_markup_has_no_inline_script_style_or_handler(tiny_client: httpx.Client) -> None:
    """The markup has no inline script, style or handler, because the policy would block it."""
    text = tiny_client.get("/").text
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert "<style" not in text
    assert re.findall(r"""\s(?:style|on\w+)=""", text) == []


def test_fields_are_labelled_context_and_query(tiny_client: httpx.Client) -> None:
    """The page's fields are labelled Context and Query."""
    text = tiny_client.get("/").text
    for name in ("Context", "Query"):
        assert f'for="{name.lower()}">{name}</label>' in text
        assert f'id="{name.lower()}"' in text


@pytest.mark.parametrize("path", ["../main.py", "%2e%2e/main.py", "js/none.js", "js", ""])
def test_paths_that_are_no_part_return_404(tiny_client: httpx.Client, path: str) -> None:
    """Paths outside the folder, folders and missing files give the problem `not_found`."""
    problem(tiny_client.get(f"/web/{path}"), "not_found")


@pytest.mark.parametrize("folder", [WEB / "vendor", Path(__file__).parent / "vendor"])
def test_versions_file_lists_every_vendored_file(folder: Path) -> None:
    """VERSIONS.md lists each vendored file with package, version and licence file, and the first
    line of a script names the same version."""
    noted = (folder / "VERSIONS.md").read_text()
    rows = re.findall(
        r"^\| `(.+?)` \| (\S+) \| (\d+\.\d+\.\d+) \| .+, `(.+)` \|$", noted, re.MULTILINE
    )
    named = set()
    for files, _package, version, licence in rows:
        if files.endswith(".js"):
            first = (folder / files).read_text().splitlines()[0]
            assert re.search(rf"\bv{re.escape(version)}\b", first)
        start, *rest = re.split(r"[{}]", files)
        choices = rest[0].split(",") if rest else [""]
        named |= {start + choice + "".join(rest[1:]) for choice in choices} | {licence}
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert named == there - {"VERSIONS.md"}
