"The site: dead links are named, signatures and comments reach the pages, and nothing comes from elsewhere."
import re

import pytest

from conftest import REPO
from medseg_nb.kit.core import InputError
from medseg_nb.kit.keys import defines
from medseg_nb.paper.pages import write_metrics_page
from medseg_nb.paper.reference import write_module_page
from medseg_nb.paper.site import Site, build_site, write_toctree

MODULE, NOTEBOOK = "medseg_nb.evaluation.metrics", "nbs/library/4_evaluation/02_metrics.ipynb"


def small_site(start: str = "") -> Site:
    "A start page, a module and the metrics"
    pages = {"api/metrics.md": write_module_page(MODULE, NOTEBOOK), "metrics.md": write_metrics_page(),
             "index.md": "# Start\n\n" + start + write_toctree(["api/metrics.md", "metrics.md"])}
    return Site(pages, {"nbs/course/02_metrics.ipynb": "metrics.md"})


def test_a_small_site_is_set(tmp_path):
    html = build_site(small_site("[metrics](metrics.md#nsd)"), tmp_path).parent
    page = re.sub(r"<[^>]+>", "", (html / "api" / "metrics.html").read_text(encoding="utf-8"))
    assert "confusion_matrix" in page and "mask, shape of pred" in page
    assert "<math" in (html / "metrics.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]*mathjax", (html / "metrics.html").read_text(encoding="utf-8"), re.I)
    assert "surfac" in (html / "searchindex.js").read_text(encoding="utf-8")


def test_a_dead_link_is_named_with_its_page(tmp_path):
    with pytest.raises(InputError, match="index.md links to nowhere.md, which does not exist"):
        build_site(small_site("[a](nowhere.md)"), tmp_path)


def test_messages_of_the_page_of_errors_are_those_of_the_code():
    code = "\n".join(p.read_text(encoding="utf-8") for p in (REPO / "medseg_nb").rglob("*.py"))
    messages = re.findall(r"^\| `([^`]+)` \|", (REPO / "docs" / "errors.md").read_text(encoding="utf-8"), re.M)
    assert len(messages) >= 9 and [m for m in messages if m not in code] == []


def test_each_term_of_the_glossary_is_defined_where_it_says():
    text = (REPO / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### (.+)\n(.+) \[`([\w.]+)`\]\(\.\./(.+)\)$", text, re.M)
    assert len(entries) == text.count("\n### ") >= 60
    terms = [term for term, *_ in entries]
    assert terms == sorted(terms, key=str.casefold) and len(set(terms)) == len(terms)
    for term, meaning, name, notebook in entries:
        module, _, definition = name.rpartition(".")
        chapter = "study" if module == "study" else module
        exported = name if chapter == "study" else module
        assert f"default_exp {exported}" in (REPO / notebook).read_text(encoding="utf-8"), term
        assert chapter == "study" or defines(f"medseg_nb.{module}", definition), f"{term}: {name} does not exist"
        assert 20 < len(meaning) < 260 and meaning.endswith("."), term
