"""The documentation site builds without a warning, its links hold, and its pages load nothing from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import unfreeze as uf

pytest.importorskip("mkdocs", reason="the site needs pip install 'unfreeze[docs]'")
ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PACKAGE = ROOT / "src" / "unfreeze" / "reports" / "static"
LOADING = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "iframe": ["src"],
    "source": ["src", "srcset"],
    "link": ["href"],
}
LOADING |= {"video": ["src", "poster"], "audio": ["src"], "embed": ["src"], "object": ["data"], "use": ["href"]}
POINTING = {"canonical", "prev", "next", "alternate"}  # relations of <link> that load nothing


class Page(HTMLParser):
    """Ids of a page, what it links to and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loads = set[str](), list[str](), list[str]()
        self.language = ""
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.language = found.get("lang", self.language) if tag == "html" else self.language
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in POINTING:
            self.links.append(found["href"])
            return
        self.loads += [found[name] for name in LOADING.get(tag, ()) if found.get(name)]
        self.loads += re.findall(r"url\(([^)]+)\)", found.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path in the site."""
    return {file.relative_to(site).as_posix(): Page(file) for file in sorted(site.rglob("*.html"))}


def named(nav: Any) -> list[str]:
    """Pages that the navigation names, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in named(item)]


def test_every_page_of_the_navigation_is_there(site: Path, pages: dict[str, Page]) -> None:
    from mkdocs.config import load_config

    nav = named(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    assert len(nav) == len(set(nav)) > 15
    reached = {link.partition("#")[0] for link in pages["index.html"].links}
    for page in nav:
        built = page.removesuffix(".md") + ".html"
        assert built in pages, page
        assert "<h1" in pages[built].text, page
        assert built in reached, f"the menu does not lead to {page}"


def test_internal_links_resolve(site: Path, pages: dict[str, Page]) -> None:
    counted = 0
    for name, page in pages.items():
        if name == "404.html":  # its links start at the server's root
            continue
        for link in page.links + page.loads:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = unquote(target.path)
            file = (site / name).parent / path if path else site / name
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{name}: {link}"
            whole = file.resolve().relative_to(site.resolve()).as_posix()
            if target.fragment and whole in pages:
                assert unquote(target.fragment) in pages[whole].ids, f"{name}: {link}"
            counted += 1
    assert counted > 500


def test_pages_load_nothing_from_another_host(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for address in page.loads:
            parts = urlsplit(address)
            assert not parts.netloc and parts.scheme in ("", "data"), f"{name} loads {address}"
    styles = list(site.rglob("*.css"))
    assert styles
    for file in styles:
        style = file.read_text(encoding="utf-8")
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style):
            assert not re.match(r"(?:https?:)?//", "".join(address)), f"{file.name} loads {address}"


def test_every_public_name_has_an_entry(pages: dict[str, Page]) -> None:
    told = [name for file in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)", file.read_text(), re.M)]
    public = [name.removeprefix("unfreeze.") for name in told if name.count(".") == 1]
    missing = sorted(set(uf.__all__) - set(public))
    assert not missing, f"add `::: unfreeze.NAME` to a page of docs/reference for {missing}"
    assert sorted(public) == sorted(uf.__all__), "named twice, or no public name any more"
    ids = set().union(*(page.ids for name, page in pages.items() if name.startswith("reference/")))
    assert {f"unfreeze.{name}" for name in uf.__all__} <= ids


def test_the_reference_is_made_of_docstrings(pages: dict[str, Page]) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", pages["reference/runs.html"].text)
    assert "Cross-validate a recipe on images and write a finished run folder." in " ".join(text.split())
    assert "runs/&lt;source&gt;-&lt;strategy&gt;" in pages["reference/runs.html"].text, "a placeholder is no tag"


def test_korean_pages_say_that_they_are(pages: dict[str, Page]) -> None:
    assert {page.language for name, page in pages.items() if name.startswith("ko/")} == {"ko"}
    assert {page.language for name, page in pages.items() if not name.startswith("ko/")} == {"en"}


def test_colors_and_sign_are_those_of_the_package() -> None:
    def colours(style: str, names: str) -> list[dict[str, str]]:
        blocks = [dict(re.findall(rf"--({names}): (#[0-9a-f]+);", block)) for block in style.split("}")]
        return [block for block in blocks if block]

    names = "page|panel|ink|muted|rule|accent|on-accent|tint"
    own = colours((ROOT / "docs" / "assets" / "site.css").read_text(), names)
    package = colours((PACKAGE / "unfreeze.css").read_text(), names)
    assert len(own) == 2
    assert own == package[:2], "light, then dark"
    assert (ROOT / "docs" / "assets" / "icon.svg").read_bytes() == (PACKAGE / "icon.svg").read_bytes()


# In a browser


class Quiet(SimpleHTTPRequestHandler):
    """Serves without a word."""

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_reader_searches_on_a_narrow_screen_and_nothing_leaves_the_host(address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    for path in ("index.html", "tutorial.html", "commands.html", "reference/runs.html", "ko/tutorial.html"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path}: scrolls sideways"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(19, 21, 23)", "dark by the reader's setting"
    page.goto(address + "index.html?q=over-sampling")
    page.locator(".md-search-result__link").first.wait_for(state="attached")
    page.goto(address + "ko/index.html?q=혼동")
    page.locator(".md-search-result__link").first.wait_for(state="attached")
    page.close()
    assert asked and {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {
        urlsplit(address).netloc
    }
    assert not faults
