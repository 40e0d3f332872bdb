"The article and supplement: what a reader, a browser and a typesetter find in them."
import contextlib
import functools
import http.server
import json
import re
import threading
from pathlib import Path

import pandas as pd
import pytest

from conftest import REPO, find_reports, needs
from medseg_nb.kit.execution import sections
from medseg_nb.kit.report import read_rows
from medseg_nb.paper.article import MAX_FLOATS, MAX_PAGES, list_word_faults
from medseg_nb.paper.build import MAX_BYTES
from medseg_nb.paper.summary import STEPS


@pytest.fixture(params=["smoke", pytest.param("cpu", marks=pytest.mark.long)])
def reports(request) -> Path:
    "The reports of a profile"
    place = find_reports(request.param)
    if not (place / "article.html").is_file(): pytest.skip(f"reports/{request.param} is not there yet")
    return place


def page(reports: Path, name: str) -> str: return (reports / f"{name}.html").read_text(encoding="utf-8")
def none(faults: list) -> None: assert not faults, "\n" + "\n".join(map(str, faults))


# What it says

def test_article_holds_nothing_that_nobody_would_write(reports): none(list_word_faults(page(reports, "article")))


PARTS = ["Introduction", "Related work", "Methods", "Results", "Discussion", "Limitations", "Ethics and data",
         "Conclusion", "References"]


def test_article_has_its_parts_in_order(reports):
    heads = [re.sub(r"<[^>]+>|^[\d.]+ ", "", h).strip() for h in re.findall(r"<h1[^>]*>(.*?)</h1>",
                                                                            page(reports, "article"), re.S)]
    assert [re.sub(r"^\d+\s*", "", h) for h in heads][1:] == PARTS


def test_abstract_gives_results_with_intervals(reports):
    abstract = re.sub(r"<[^>]+>", "", re.search(r'<section class="abstract">(.*?)</section>',
                                                page(reports, "article"), re.S)[1])
    abstract = abstract.replace("\N{NO-BREAK SPACE}", " ")
    intervals = re.findall(r"−?\d[\d.]*(?: %)? \[−?\d[\d.]*(?: %)?, −?\d[\d.]*(?: %)?\]", abstract)
    assert len(intervals) >= 3, abstract


def test_sizes(reports):
    text = page(reports, "article")
    assert len(re.findall("<figure", text)) <= MAX_FLOATS["figure"] and len(re.findall("<table",
                                                                                       text)) <= MAX_FLOATS["table"]
    for name in ("article.pdf", "article.html", "supplement.pdf", "supplement.html"):
        assert (reports / name).stat().st_size <= MAX_BYTES, name
    assert MAX_PAGES["cpu"] <= 20 and MAX_PAGES["smoke"] <= 12


def test_every_drawing_has_words_and_lies_beside_the_page(reports):
    for name in ("article", "supplement"):
        drawings = re.findall(r'<img src="([^"]*)" alt="([^"]*)"', page(reports, name))
        assert drawings and len(drawings) == page(reports, name).count("<img")
        none([d for d in drawings if len(d[1]) < 20 or not (reports / d[0]).is_file()])


def test_links_lead_somewhere(reports):
    ids = {name: set(re.findall(r'id="([^"]+)"', page(reports, name))) for name in ("article", "supplement")}
    faults = []
    for name in ids:
        for target in re.findall(r'href="([^"]+)"', page(reports, name)):
            file, _, anchor = target.partition("#")
            where = file.removesuffix(".html") or name
            is_lost = where in ids and anchor and anchor not in ids[where]
            if is_lost or file and where not in ids and not target.startswith("https://"):
                faults.append(f"{name}.html links to {target}")
    none(faults)


def stored_value(reports: Path, origin: str) -> object:
    "What lies where a number says that it came from"
    if m := re.fullmatch(r"(\w+)/([\w.]+)\.csv:(\d+):(\w+)", origin):
        return pd.read_csv(reports / m[1] / f"{m[2]}.csv").iloc[int(m[3]) - 2][m[4]]
    section, _, key = origin.partition(":")
    return json.loads((reports / section / "results.json").read_text(encoding="utf-8"))["numbers"][key]["value"]


def first_number(text: str) -> float:
    words = re.sub(r"(\d),(?=\d{3})", r"\1", text.replace("−", "-").replace("none", "0").replace("no ", "0 "))
    return float(re.search(r"-?\d+(?:\.\d+)?", words)[0])


def test_every_number_is_the_one_at_its_origin(reports):
    "Looked up in the stored results, and equal but for rounding, a share as percent, or its sign"
    for name in ("article", "supplement"):
        spans = re.findall(r'<span class="number" data-from="([^"]+)">(.*?)</span>', page(reports, name), re.S)
        faults = []
        for origin, text in spans:
            value, text = stored_value(reports, origin), re.sub(r"<[^>]+>", "", text)
            is_word = not re.search(r"\d|\bnone?\b", text) or text.startswith("p ")
            if isinstance(value, str) or value is None or value != value or is_word: continue
            printed, places = first_number(text), len((re.search(r"\.(\d+)", text.split("[")[0]) or [".", ""])[1])
            wanted = 100 * float(value) if "%" in text else float(value)
            if abs(abs(printed) - abs(wanted)) > max(.5001 * 10 ** -places, 1e-9): faults.append((origin, text, value))
        assert len(spans) > 100
        none(faults)


def test_ledger_is_whole(reports):
    ledger, rows = pd.read_csv(reports / "claims.csv"), read_rows(reports / "claims")
    assert len(ledger) == len(rows) > 100 and [*ledger.verdict] == [*rows.verdict]


def test_every_text_tells_the_same_rule_of_verdicts():
    "Article, supplement, the method of the claims and the page on trust"
    texts = [" ".join((REPO / place).read_text(encoding="utf-8").split()) for place
             in ("nbs/paper/article.md", "nbs/paper/supplement.md", "docs/trust.md")]
    cells = json.loads((REPO / "nbs" / "study" / "26_claims.ipynb").read_text(encoding="utf-8"))["cells"]
    texts.append(" ".join(" ".join("".join(c["source"]) for c in cells).split()))
    rule = ("A claim of a value or of a range of values is *refuted* if the 95 % interval excludes it;",
            "A claim of at least or at most a value is *supported* if the whole interval lies on the claimed side of "
            "it, *refuted* if the whole interval lies on the other side, and *undecided* if the interval holds the "
            "value.",
            "is *supported* if the interval of the difference lies above zero, *refuted* if it lies below, and "
            "*undecided* if it holds zero.")
    none([sentence for sentence in rule for text in texts if sentence not in text])


def test_article_asks_for_sections_of_the_study():
    "A section that was renamed would vanish from the article without a word"
    text, known = (REPO / "nbs" / "paper" / "article.md").read_text(encoding="utf-8"), {*sections(), "article"}
    names = set(re.findall(r"[{\"]([a-z]\w*):(?:table:|figure:)?[a-z]\w*[.\w]*", text))
    for words in re.findall(r"has\(([^)]*)\)", text): names |= set(re.findall(r'"(\w+)"', words))
    assert len(names) > 10
    none(sorted(names - known))


def test_every_method_that_is_used_is_cited():
    text = (REPO / "nbs" / "paper" / "references.bib").read_text(encoding="utf-8")
    known = set(re.findall(r"^@\w+\{(\w+),", text, re.M))
    cited = set()
    for path in [*(REPO / "nbs").rglob("*.ipynb"), *(REPO / "nbs" / "paper").glob("*.md")]:
        cited |= set(re.findall(r"@([a-z]+\d{4}[a-z]?)\b", path.read_text(encoding="utf-8")))
    article = (REPO / "nbs" / "paper" / "article.md").read_text(encoding="utf-8")
    for key in ("isensee2021", "badrinarayanan2017", "milletari2016", "he2017", "chen2018", "xie2021",
                "hatamizadeh2022"):
        assert key in known and f"@{key}" in article, key
    none(sorted(cited & {k for k in cited if re.search(r"\d{4}", k)} - known - {"nobody1900"}))


# In the browser

@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright
    place = needs("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextlib.contextmanager
def serve(place: Path):
    "A folder at an address of this machine"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *given): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally: server.shutdown(); server.server_close()


@pytest.fixture
def visit(chromium, reports):
    "Opens a page of the committed paper; at the end nothing was asked of another machine, and the console is clean"
    with serve(reports) as base:
        opened = []
        def open_page(name: str, width: int = 1360):
            tab, asked, told = chromium.new_context(viewport=dict(width=width, height=860)).new_page(), [], []
            tab.on("request", lambda r: asked.append(r.url))
            tab.on("pageerror", lambda e: told.append(str(e)))
            tab.on("console", lambda m: told.append(m.text) if m.type == "error" and "favicon" not
                   in m.location.get("url", "") else None)
            tab.goto(f"{base}/{name}.html", wait_until="load")
            opened.append((tab, asked, told))
            return tab
        yield open_page
        for tab, asked, told in opened:
            none([u for u in asked if not u.startswith((base, "data:"))] + told)
            tab.context.close()


@pytest.mark.parametrize("name", ["article", "supplement"])
@pytest.mark.parametrize("width", [390, 1360])
def test_no_sideways_scrolling(visit, name, width):
    tab = visit(name, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    first = tab.locator("main h1").first.bounding_box()
    assert first["x"] >= 0 and first["x"] + first["width"] <= width


def test_navigation_leads_to_a_heading(visit):
    tab = visit("article")
    link = tab.locator("nav a", has_text="Discussion")
    link.click()
    assert abs(tab.locator("main h1", has_text="Discussion").bounding_box()["y"]) < 430
    assert tab.locator("nav a", has_text="Supplement").get_attribute("href") == "supplement.html"


def test_search_finds_a_word_and_leads_there(visit):
    tab = visit("article")
    tab.fill("#search", "confusion matrix")
    hits = tab.locator("#hits li a")
    assert hits.count() >= 1 and "Claims" in " ".join(tab.locator("#hits small").all_inner_texts())
    hits.first.click()
    assert tab.locator(".hit").count() == 1 and tab.locator(".hit").bounding_box()["y"] < 860
    tab.fill("#search", "zyzzyva")
    assert tab.locator("#hits").inner_text() == "Nothing found."


def test_a_figure_opens_large(visit):
    tab = visit("article")
    small = tab.locator("main figure img").first
    small.scroll_into_view_if_needed()
    before = small.bounding_box()["width"]
    small.click()
    large = tab.locator("#large[open] img")
    assert large.bounding_box()["width"] > before and large.get_attribute("alt") == small.get_attribute("alt")
    tab.keyboard.press("Escape")
    assert tab.locator("#large[open]").count() == 0


def test_a_table_sorts_and_filters(visit, reports):
    tab = visit("supplement")
    verdicts, table = pd.read_csv(reports / "claims" / "judged.csv"), tab.locator("#table-claims-judged")
    assert table.locator("tbody tr").count() == len(verdicts)
    head = table.locator("th", has_text="measured").first
    column = [*table.locator("th").all_text_contents()].index(head.text_content())
    head.dispatch_event("click")  # parts of the page are laid out when they come into sight, which moves the head
    cells = table.locator(f"tbody tr td:nth-child({column + 1})").all_text_contents()
    numbers = [first_number(c) for c in cells if re.search(r"\d", c)]
    assert numbers and numbers == sorted(numbers) and head.get_attribute("aria-sort") == "ascending"
    head.dispatch_event("click")
    assert first_number(table.locator(f"tbody tr td:nth-child({column + 1})").first.text_content()) == max(numbers)
    table.evaluate("table => table.scrollIntoView()")  # a table gets its filter when it comes near
    table.locator("xpath=preceding-sibling::input").fill("refuted")
    assert table.locator("tbody tr:visible").count() == sum(verdicts.apply(lambda r: "refuted"
                                                                           in " ".join(map(str, r)).lower(), axis=1))


@pytest.mark.parametrize("name", ["article", "supplement"])
def test_a_number_tells_its_origin(visit, reports, name):
    tab = visit(name)
    number = tab.locator('main span.number[data-from^="hybrid:"]').first
    number.scroll_into_view_if_needed()
    number.click()
    told = tab.locator("#origin[open]").inner_text()
    facts = json.loads((reports / "hybrid" / "provenance.json").read_text(encoding="utf-8"))
    assert "hybrid/results.json" in told and number.get_attribute("data-from").partition(":")[2] in told
    assert facts["parts"]["code"][:8] in told and str(facts["seed"]) in told
    assert all(d in told for d in facts["data"])


def test_a_cell_tells_its_origin(visit):
    tab = visit("supplement")
    cell = tab.locator("#table-hybrid-scores").locator("td", has_text=re.compile(r"\d")).first
    cell.scroll_into_view_if_needed()
    cell.click()
    assert re.search(r"File\s+hybrid/scores\.csv", tab.locator("#origin[open]").inner_text())


def test_pages_load_in_two_seconds(visit):
    "Of the processor that draws the page; other tests keep it busy meanwhile, and a clock would count them too"
    for name in ("article", "supplement"):
        tab = visit(name)
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", dict(timeDomain="threadTicks"))
        times = []
        for _ in range(3):  # the least: what else runs on the core's other thread makes any one longer
            tab.reload(wait_until="load")
            metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            times.append(metrics["TaskDuration"])
        assert .01 < min(times) < 2, (name, times)


def test_the_overview_names_each_section_once():
    "Those of the ledger are its last box, the verdicts; what is made for data of one's own alone is in no overview"
    named = [name for _, names in STEPS for name in names.split()]
    assert sorted(named) == sorted(n for n, s in sections().items() if n != "claims" and s.profiles != ["own"])
