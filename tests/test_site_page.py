"""The site in a browser, at the width of a desk and of a phone. A small site (metrics, a module, glossary, gallery) is
built here in seconds; the whole one, whose lessons are executed, takes minutes and is `stress`."""
import functools
import http.server
import threading
from pathlib import Path

import pytest
from conftest import REPO, needs
from test_site import MODULE, NOTEBOOK

from medseg_nb.paper.pages import write_gallery_page, write_metrics_page
from medseg_nb.paper.reference import write_module_page
from medseg_nb.paper.site import Site, build_site, check_site, collect_site, write_toctree

WIDTHS = dict(desk=(1280, 900), phone=(390, 844))


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words): pass


def serve(place: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    place = needs("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu", "--disable-sync"])
        yield browser
        browser.close()


def visit(chromium, place: Path, pages: list[str]) -> list[str]:
    "What is wrong with pages of a site: its answer, its width, its pictures, what it asks of other machines"
    server, faults = serve(place), []
    home = f"http://127.0.0.1:{server.server_port}/"
    for name, (width, height) in WIDTHS.items():
        tab = chromium.new_page(viewport=dict(width=width, height=height))
        def note_outside(r): faults.extend([] if r.url.startswith((home, "data:")) else [f"asks for {r.url}"])
        tab.on("request", note_outside)
        tab.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        tab.on("pageerror", lambda e: faults.append(str(e)))
        for page in pages:
            tab.goto(home + page)
            broken = tab.evaluate("""async () => {
                for (const i of document.images) i.loading = 'eager';
                await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
                return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)}""")
            faults += [f"{page}: {src} shows nothing" for src in broken]
            if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
                faults.append(f"{page}: {wide} wide on a {name} of {width}")
        tab.close()
    server.shutdown()
    return faults


def search(chromium, place: Path, words: str) -> list[str]:
    "Titles of the pages that the site's own search finds"
    server, tab = serve(place), chromium.new_page()
    tab.goto(f"http://127.0.0.1:{server.server_port}/search.html?q={words.replace(' ', '+')}")
    tab.locator("#search-results li a").first.wait_for()
    titles = tab.locator("#search-results li > a").all_inner_texts()
    tab.close(); server.shutdown()
    return titles


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    pages = {"api/metrics.md": write_module_page(MODULE, NOTEBOOK), "metrics.md": write_metrics_page(),
             "gallery/smoke.md": write_gallery_page("smoke"),
             "docs/glossary.md": (REPO / "docs" / "glossary.md").read_text(encoding="utf-8")}
    pages["index.md"] = "# Start\n\nA small site." + write_toctree(pages)
    aliases = {"nbs/course/02_metrics.ipynb": "metrics.md"}
    return build_site(Site(pages, aliases), tmp_path_factory.mktemp("site")).parent


@pytest.mark.long
def test_pages_fit_and_show_their_figures(chromium, small):
    pages = ["index.html", "api/metrics.html", "metrics.html", "docs/glossary.html", "gallery/smoke.html"]
    assert (small / "gallery" / "smoke.html").read_text(encoding="utf-8").count("<img") > 10
    assert visit(chromium, small, pages) == []
    assert any("Glossary" in title for title in search(chromium, small, "surface Dice"))


def test_a_picture_that_is_missing_and_one_that_is_too_wide_are_seen(chromium, tmp_path):
    (tmp_path / "index.html").write_text("<img src='gone.png'><div style='width:2000px'>x</div>")
    faults = "\n".join(visit(chromium, tmp_path, ["index.html"]))
    assert "gone.png shows nothing" in faults and "wide on a phone of 390" in faults and "404" in faults


@pytest.mark.stress  # the lessons are executed, and a hundred and fifty pages are set
def test_the_whole_site(chromium):
    html = build_site(collect_site(), REPO / "_site").parent
    pages = sorted(p.relative_to(html).as_posix() for p in html.rglob("*.html"))
    assert len(pages) > 200 and check_site(html) == [] and visit(chromium, html, pages) == []
    assert any("Glossary" in title for title in search(chromium, html, "surface Dice"))
    lessons = [html / p for p in pages if p.startswith("nbs/course/0")]
    assert len(lessons) >= 9 and all("<img" in p.read_text(encoding="utf-8") for p in lessons)
