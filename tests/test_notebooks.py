"The notebooks' own rules. Each rule takes a path and returns its faults; each is shown a notebook that breaks it."
import ast
import builtins
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
import warnings
from pathlib import Path

import nbformat
import pytest
import yaml
from execnb.nbio import dict2nb, nb2str
from nbdev.clean import clean_nb
from packaging.requirements import Requirement

from medseg_nb.kit.execution import parse_code, strip_tests, read_notebook
from medseg_nb.kit.report import display_text

from conftest import REPO, cell, write_notebook

NBS = REPO / "nbs"
NOTEBOOKS = sorted(NBS.rglob("*.ipynb"))
CODE = sorted([*(REPO / "medseg_nb").rglob("*.py"), *(REPO / "tests").rglob("*.py"), REPO / "setup.py"])


def cells(path: Path, kind: str = "code") -> list[str]:
    "Sources of a notebook's cells of one kind"
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == kind]


def trees(path: Path) -> list[ast.Module]:
    "Syntax trees of a notebook's code cells, or of a module"
    return [ast.parse(s) for s in (cells(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")])]


def nodes(path: Path, *kinds: type) -> list[ast.AST]:
    return [n for t in trees(path) for n in ast.walk(t) if isinstance(n, kinds)]
def directives(source: str) -> list[str]: return [d.strip() for d in re.findall(r"^#\|(.+)$", source, re.M)]
def name_of(path: Path) -> str: return path.stem.split("_", 1)[1]
def is_section(path: Path) -> bool: return path.parent.name == "study"


def exported_name(path: Path) -> str:
    "Module below medseg_nb that a notebook exports, by its place"
    folder = path.parent.name if is_section(path) else re.sub(r"^\d+_", "", path.parent.name)
    return name_of(path) if folder == "library" else f"{folder}.{name_of(path)}"


# Rules over notebooks

def normal_form(path: Path) -> list[str]:
    "nbdev_clean would change nothing"
    text = path.read_text(encoding="utf-8")
    book = dict2nb(json.loads(text))
    clean_nb(book, allowed_cell_metadata_keys=["tags"])
    for c in book.cells: c.pop("idx_", None)
    return [] if nb2str(book) == text else ["nbdev_clean would change it"]


def no_output(path: Path) -> list[str]:
    found = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if c.get("outputs") or c.get("execution_count") is not None]
    return [f"cell {c['id']} carries output" for c in found]


def valid(path: Path) -> list[str]:
    "nbformat 4.5 with ids of its own, and a python3 kernel"
    book = json.loads(path.read_text(encoding="utf-8"))
    ids = [c.get("id") for c in book["cells"]]
    faults = ([] if (book["nbformat"], book["nbformat_minor"]) == (4, 5)
              and len(set(ids)) == len(ids) and all(ids) else ["is not nbformat 4.5 with an id for each cell"])
    if book["metadata"].get("kernelspec") != dict(display_name="python3", language="python", name="python3"):
        faults.append("has another kernelspec than python3")
    try: nbformat.validate(book)
    except nbformat.ValidationError as e: faults.append(str(e).splitlines()[0])
    return faults


def stem(path: Path) -> list[str]:
    """study/NN_<section>.ipynb exports study.<section>, library/<n>_<chapter>/NN_<module>.ipynb exports
    <chapter>.<module>"""
    if not re.fullmatch(r"\d\d_[a-z]\w*", path.stem): return ["is not called NN_module.ipynb"]
    fault = f"its first code cell does not say `#| default_exp {exported_name(path)}`"
    return [] if directives(cells(path)[0]) == [f"default_exp {exported_name(path)}"] else [fault]


def section_form(path: Path) -> list[str]:
    "A section has one parameters cell and study cells; another notebook has neither"
    tagged = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
              if "parameters" in c["metadata"].get("tags", [])]
    study = [s for s in cells(path) if "study" in directives(s)]
    if not is_section(path): return ["is no section, and has cells of one"] if tagged or study else []
    faults = [] if len(tagged) == 1 and tagged[0]["cell_type"] == "code" else [f"has {len(tagged)} parameters cells"]
    rows = ast.parse("".join(tagged[0]["source"])).body if len(tagged) == 1 else []
    if not all(isinstance(r, ast.Assign) and isinstance(r.targets[0], ast.Name) for r in rows):
        faults.append("its parameters cell holds more than assignments")
    return faults + ([] if study else ["has no study cell"])


def title(path: Path) -> list[str]:
    text = cells(path, "markdown")[:1]
    return ([] if text and re.match(r"# \S.*\n\n> \S.*\?", text[0])
            else ["does not begin with `# Title` and `> the question?`"])


def no_star(path: Path) -> list[str]:
    return [f"from {n.module} import *" for n in nodes(path, ast.ImportFrom) if any(a.name == "*" for a in n.names)]


def bound(tree: ast.AST) -> set[str]:
    "Every name that a tree gives a meaning to"
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= ({n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
              | {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))})
    return found | {(a.asname or a.name).split(".")[0]
                    for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}


def apart_from_tests(path: Path) -> list[str]:
    "A section's experiment is executed without its tests, so it uses no name that only they define"
    if not is_section(path): return []
    whole = parse_code(strip_tests(read_notebook(path)), path.name)
    used = {n.id for n in ast.walk(whole) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return [f"uses {name}, which only a test defines" for name in sorted(used - bound(whole) - set(dir(builtins)))]


def imports_alone(path: Path) -> list[str]:
    "nbdev takes a cell that holds an import for imports alone"
    kinds = [{isinstance(n, (ast.Import, ast.ImportFrom)) for n in t.body} for t in trees(path)]
    return [f"code cell {k} mixes imports with other code" for k, found in enumerate(kinds) if len(found) == 2]


def skipping(path: Path) -> list[tuple[ast.AST, ast.Call | None]]:
    "Uses of pytest's skips and expected failures, with the call where there is one"
    found = []
    for tree in trees(path):
        calls = {n.func: n for n in ast.walk(tree) if isinstance(n, ast.Call)}
        found += [(n, calls.get(n)) for n in ast.walk(tree)
                  if isinstance(n, ast.Attribute) and n.attr in ("skip", "skipif", "xfail", "importorskip")
                  and ast.unparse(n.value) in ("pytest", "pytest.mark")]
    return found


def skips_have_reasons(path: Path) -> list[str]:
    "`skip_exec` and `eval: false` need a line `# because …`; pytest's skips need their reason"
    texts = [s for kind in ("code", "markdown", "raw") for s in cells(path, kind)] if path.suffix == ".ipynb" else []
    faults = [f"{d} without a reason" for s in texts
              for d in [*directives(s), *re.findall(r"^-? ?(skip_\w+):", s, re.M)]
              if re.match(r"skip_|eval: *false", d) and not re.search(r"^# because \S", s, re.M)]
    for use, call in skipping(path):
        given = ([k.value for k in call.keywords if k.arg == "reason"]
                 + (call.args[:1] if use.attr == "skip" else []) if call else [])
        if not given or isinstance(given[0], ast.Constant) and not str(given[0].value).strip():
            faults.append(f"{ast.unparse(use)} without a reason")
    return faults


def within_strings(source: str) -> set[int]:
    "Lines that lie wholly inside a string, whose value a break would change; docstrings may be broken"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {n.body[0].lineno for n in ast.walk(ast.parse(source))
            if isinstance(n, kinds) and ast.get_docstring(n, clean=False) is not None}
    return {k for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.start[0] not in said
            for k in range(t.start[0] + 1, t.end[0])}  # only strings have tokens of several lines


def short_lines(path: Path) -> list[str]:
    "Lines end within 120 columns"
    sources = cells(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    return [f"{len(x)} columns: {x[:60]}…" for s in sources for k, x in enumerate(s.split("\n"), 1)
            if len(x) > 120 and k not in within_strings(s)]


def code_runs(path: Path) -> list[str]:
    "No text cell holds code, which would never run"
    def is_code(text):
        try: return any(not isinstance(n, ast.Expr) or isinstance(n.value, ast.Call) for n in ast.parse(text).body)
        except SyntaxError: return False
    return [f"a text cell that is code: {text[:60]}" for text in cells(path, "markdown") if is_code(text)]


def few_cells(path: Path) -> list[str]:
    count = len(json.loads(path.read_text(encoding="utf-8"))["cells"])
    if count > 80: warnings.warn(f"{path.name} has {count} cells; aim for 80")
    return [f"has {count} cells"] if count > 100 else []


def no_machine_path(path: Path) -> list[str]:
    "No place of one machine, and nothing outside the repository"
    text = path.read_text(encoding="utf-8", errors="replace")
    return sorted(
        {m[0] for m in re.finditer(r"(?<![\w.:/])/(?:work|root|home/\w+|Users/\w+)/|\.\.[/\\]shared|[A-Z]:\\Users",
                                   text)})


UNSAFE = [("weights_only", False), ("verify", False), ("allow_pickle", True), ("shell", True)]


def nothing_unsafe(path: Path) -> list[str]:
    "No pickle from anywhere, and certificates are checked"
    faults = []
    for n in nodes(path, ast.Import, ast.ImportFrom, ast.Call, ast.Attribute):
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            faults += [f"imports {m}" for m in [*(a.name for a in n.names), getattr(n, "module", None) or ""]
                       if m.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")]
        elif isinstance(n, ast.Attribute): faults += [n.attr] if n.attr in ("read_pickle", "to_pickle") else []
        else:
            given = [(k.arg, k.value.value) for k in n.keywords if isinstance(k.value, ast.Constant)]
            faults += [f"{k}={v}" for k, v in given if (k, v) in UNSAFE]
    return faults


# Prose: no sentence states an outcome that is not computed

REVIEWED = {tuple(line.split(": ", 1))
            for line in (REPO / "tests" / "reviewed_prose.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")}
TYPED = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|both|half|twice|none|neither)\b", re.I)


def findings(path: Path) -> list[str]:
    """The clauses below `## Findings`, without floats that have a line for themselves, references to floats in
    parentheses, and statements of the template"""
    text = re.search(r"^## Findings\n(.*?)(?=^## |\Z)", "\n\n".join(cells(path, "markdown")), re.S | re.M)
    text = re.sub(r"^\{(?:table|figure):\w+\}$|\{%.*?%\}", "", text[1], flags=re.M | re.S) if text else ""
    text = " ".join(re.sub(r"^(###.*)$", r"\1.", text, flags=re.M).split())  # a heading is a clause
    text = re.sub(r"\s*\((?:\{(?:table|figure):\w+\}(?:, )?)+\)", "", text)
    return [c.strip() for c in re.split(r"(?<=[.?!])\s+(?=[A-Z*{#])|[:;]\s+", text) if c.strip()]


def is_bound(clause: str) -> bool:
    "Whether a clause quotes a number or a sentence that a number chose, and types no number beside it"
    quoted = re.search(r"\{(?!table:|figure:)[^}]*\}", clause)
    return bool(quoted) and not TYPED.search(re.sub(r"\{[^}]*\}|\[@[^\]]*\]|`[^`]*`|\*\*[^*]*\*\*", "", clause))


def bound_prose(path: Path) -> list[str]:
    """Every clause of a section's findings quotes what was computed, or was reviewed: a definition, a setting, a limit
    of the design"""
    if not is_section(path): return []
    return [f"states `{c}`, which quotes nothing that was computed; quote a number or a sentence of "
            "`choose_sentence`, or have it reviewed in tests/reviewed_prose.txt"
            for c in findings(path) if not is_bound(c) and (name_of(path), c) not in REVIEWED]


UNIT = re.compile(r"patient is (?:always |the only )?the unit|\b(?:all|every|each|other)\b[^.]*\bsplits? by patient",
                  re.I)


def unit_by_manifest(text: str) -> list[str]:
    "A sentence on the unit of splits says that it is the patient only where a set names its patients"
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z*{])", " ".join(text.split()))
    return [f"says `{s}`, and some manifests say `patient: unknown`"
            for s in sentences if UNIT.search(s) and not re.search(r"\bwhere(?:ver)?\b", s)]


def unit_of_prose(path: Path) -> list[str]:
    if not is_section(path): return []
    return unit_by_manifest("\n\n".join(cells(path, "markdown")))


CONTRADICTED = {  # what prose said once, and why it is not so
    r"\btests? flips? (?:the )?signs|\bsign[- ]flip": "p values come from the draws that make the interval",
    r"\bnetworks? (?:is|are) compared at equal (?:cost|time)|\b(?:all|every) networks? (?:(?:is|are) )?train(?:s|ed)? "
    r"for (?:the same|equal) time": "budgets differ, as nbs/plans.yaml says",
    r"\bno ranking rests on one training": "some networks have one training on a fold",
    r"\bno number of the text was typed": "settings are typed",
    r"\beverything beats\b": "which networks lie below the constant mask is counted"}


def contradicted(text: str) -> list[str]:
    "Sentences on the method that the code contradicts"
    text = " ".join(text.split())
    return [f"says `{m[0]}`: {why}" for said, why in CONTRADICTED.items() for m in re.finditer(said, text, re.I)]


def prose_of_the_method(path: Path) -> list[str]: return contradicted("\n\n".join(cells(path, "markdown")))


def none(faults: list[str]) -> None: assert not faults, "\n" + "\n".join(faults)


RULES = [normal_form, no_output, valid, stem, section_form, title, no_star,
         apart_from_tests, imports_alone, skips_have_reasons, short_lines, code_runs, few_cells, no_machine_path,
         nothing_unsafe, bound_prose, unit_of_prose, prose_of_the_method]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule(rule):
    # lessons export nothing
    lessons_too = rule not in (stem, section_form, apart_from_tests, bound_prose, unit_of_prose)
    own = [p for p in NOTEBOOKS if p.parent.name != "course" or lessons_too]
    assert len(own) >= 20
    none([f"{p.name}: {fault}" for p in own for fault in rule(p)])


# Each rule can fail

GOOD = [cell("#| default_exp study.b"), cell("# Title\n\n> Which question?"),
        cell('profile = "smoke"', "parameters"), cell("#| export\nimport math\n\nfrom medseg_nb.kit.a import x"),
        cell("#| export\ndef f(): return math.pi"), cell("#| study\nf()")]


def changed(k: int, new: dict | str | None = None, **values):
    "GOOD with another cell at position k, or with other values in that cell"
    def make():
        found = [dict(c) for c in GOOD]
        found[k] = cell(new) if isinstance(new, str) else found[k] | values
        return found
    return make


def added(*sources: str): return lambda: [*GOOD, *map(cell, sources)]


SPOILT = {
    "stray cell metadata": (normal_form, changed(4, metadata=dict(collapsed=True))),
    "execution count": (normal_form, changed(4, execution_count=3)),
    "output": (no_output, changed(4, outputs=[dict(output_type="stream", name="stdout", text="x")])),
    "count": (no_output, changed(4, execution_count=3)), "id twice": (valid, changed(4, id=GOOD[3]["id"])),
    "unlike stem": (stem, changed(0, "#| default_exp b")), "no parameters": (section_form, changed(2, "profile = 1")),
    "two parameters cells": (section_form, lambda: [*GOOD, cell("seed = 1", "parameters")]),
    "code among the parameters": (section_form, lambda: [*GOOD[:2], cell("print(1)", "parameters"), *GOOD[3:]]),
    "no study cell": (section_form, changed(5, "f()")), "no question": (title, changed(1, "# Title\n\nNo question.")),
    "a test's name": (apart_from_tests, added("y = 1\nassert y", "#| study\nprint(y)")),
    "star": (no_star, added("from math import *")),
    "mixed imports": (imports_alone, changed(3, "#| export\nimport math\ntau = 2 * math.pi")),
    "eval false": (skips_have_reasons, added("#| eval: false\n1 / 0")),
    "skip_exec": (skips_have_reasons, added("#| skip_exec\n1 / 0")),
    "skip_exec as front matter": (
        skips_have_reasons, lambda: [dict(cell("x"), cell_type="raw", source="---\nskip_exec: true\n---"), *GOOD]),
    "bare pytest skip": (skips_have_reasons, added("import pytest\npytest.skip()")),
    "empty reason": (skips_have_reasons, added("import pytest\n@pytest.mark.skipif(True, reason=' ')\ndef f(): pass")),
    "bare mark": (skips_have_reasons, added("import pytest\n@pytest.mark.skip\ndef f(): pass")),
    "long line": (short_lines, added(f"x = '{'x' * 120}'")),
    "long line of a docstring": (short_lines, added(f'def f():\n    """Says\n    {"x " * 60}\n    more"""')),
    "long line where a string begins": (short_lines, added(f'x = """{"x " * 60}\n"""')),
    "test in a text cell": (code_runs, lambda: [*GOOD, dict(cell("assert 1"), cell_type="markdown")]),
    "many cells": (few_cells, lambda: GOOD * 20), "machine path": (no_machine_path, added("p = '/" + "root/data'")),
    "outside": (no_machine_path, added("p = '.." + "/shared/data'")),
    "pickle": (nothing_unsafe, added("import pickle")),
    "pickle within": (nothing_unsafe, added("def f():\n    from pickle import load\n    return load")),
    "weights": (nothing_unsafe, added("torch.load(f, weights_only=False)")),
    "allow pickle": (nothing_unsafe, added("np.load(f, allow_pickle=True)")),
    "no certificate": (nothing_unsafe, added("requests.get(u, verify=False)")),
    "typed outcome": (bound_prose, added("## Findings\n\nU-Net was best ({table:scores}).")),
    "typed conclusion before a number": (
        bound_prose, added("## Findings\n\nNothing is promised: it was at or below in {kept.count} of {asked.count}.")),
    "typed outcome in a heading": (bound_prose, added("## Findings\n\n### U-Net was best\n\nIt had {gain.largest}.")),
    "typed count": (bound_prose, added("## Findings\n\nOf 12 comparisons {kept.count} held.")),
    "typed count in words": (bound_prose, added("## Findings\n\nU-Net gained {gain.largest} on both sets.")),
    "typed example": (
        bound_prose,
        added("## Findings\n\nSpeed alone gains {gain.largest}: the fully convolutional network shows it.")),
    "another test": (prose_of_the_method, added("## Method\n\nIntervals are over patients, tests\nflip signs.")),
    "equal budgets": (prose_of_the_method, added("## Method\n\nNetworks are compared at equal cost.")),
    "patient throughout": (unit_of_prose, added("## Method\n\nThe patient is the unit of splits.")),
    "split by patient": (unit_of_prose, added("## Findings\n\nAll other sections of this study\nsplit by patient.")),}


@pytest.fixture
def book(tmp_path):
    "Writes cells as the section 20_b"
    (tmp_path / "study").mkdir()
    return lambda found: write_notebook(tmp_path / "study" / "20_b.ipynb", found)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_lets_a_good_notebook_pass(book, rule): assert rule(book(GOOD)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPOILT)
def test_rule_sees_a_spoilt_notebook(book, name):
    rule, make = SPOILT[name]
    assert rule(book(make())) != []


def test_every_rule_has_a_spoilt_notebook(): assert {r for r, _ in SPOILT.values()} == set(RULES)


def test_reasons_are_accepted(book):
    path = book([*GOOD, cell("#| eval: false\n# because it needs a GPU\n1 / 0"), cell("pytest.skip(f'no {x} here')"),
                 cell("@pytest.mark.skipif(True, reason='no GPU')\ndef f(): pass")])
    assert skips_have_reasons(path) == []


def test_long_lines_within_strings_are_accepted(book):
    assert short_lines(book([*GOOD, cell(f"x = '{'x' * 114}'"), cell(f'x = """\n{"x " * 100}\n"""')])) == []


def test_other_kernel_is_seen(book):
    path = book(GOOD)
    path.write_text(path.read_text().replace('"python3"', '"conda-env"'))
    assert valid(path) != []


def test_prose_that_quotes_its_numbers_passes(book):
    text = ("## Findings\n\nOf {all.count} comparisons {kept.count} held ({table:scores}). {kept.sentence} It was "
            "lower by {gain.largest} [@a2020].\n\n{table:scores}")
    assert bound_prose(
        book([*GOOD, cell(text), cell("## Method\n\nThe patient is the unit where a set names its patients.")])) == []


def test_reviewed_prose_is_that_of_the_notebooks():
    "No line is left of a clause that was changed"
    held = {(name_of(p), c) for p in NOTEBOOKS if is_section(p) for c in findings(p) if not is_bound(c)}
    none([f"tests/reviewed_prose.txt: no notebook says `{section}: {clause}`; take the line out"
          for section, clause in sorted(REVIEWED - held)])


UNFILLED = re.compile(r"\{(?:[a-z]\w*:)?(?:(?:table|figure):\w+|[a-z0-9_]+(?:\.[a-z0-9_]+)+)(?:\|[^{}]*)?\}|\{%|\{\{"
                      r"|\[[^\[\]]*@[a-z]\w*\d{4}\w*[^\[\]]*\]|data-from=")


def unfilled(path: Path) -> list[str]:
    "Keys, citations and templates in an executed notebook; those in code and formulas are left out"
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]+\$", "", "\n\n".join(cells(path, "markdown")), flags=re.S)
    return [f"holds {m[0]}, which was not filled" for m in UNFILLED.finditer(text)]


def test_executed_notebooks_are_filled():
    executed = sorted((REPO / "reports").glob("*/*/notebook.ipynb"))
    if not executed: pytest.skip("no section was executed yet")
    none([f"{p.relative_to(REPO)} {fault}" for p in executed for fault in unfilled(p)])


@pytest.mark.parametrize("text", ["Of {a.b}.", "{table:scores}", "In {b:a.c|count set}", "{% if a %}",
                                  "as known [@dice1945]", "[see @dice1945, p. 3]"])
def test_unfilled_text_is_seen(tmp_path, text):
    good = write_notebook(tmp_path / "a.ipynb", [cell("# A\n\n`{a.b}` and $\\frac{a.b}{c}$ of 0.1 [0, 1], [a](b.csv)")])
    assert unfilled(good) == [] and len(unfilled(write_notebook(tmp_path / "b.ipynb", [cell(f"# A\n\n{text}")]))) == 1


SHORT = dict(skin_isic2017="ISIC 2017", skin_ph2="PH2", polyp_kvasir="Kvasir polyps",
             nuclei_dsb2018="nuclei of the Data Science Bowl 2018", nuclei_dsb2018_large="both sets of nuclei",
             hippocampus_msd="hippocampi of the Medical Segmentation Decathlon",
             luna16_annotations="annotations of LUNA16")


def test_ids_have_names_that_people_use():
    "Each data set that a section takes has a name, no two share one, and no name is an id or holds one"
    names = yaml.safe_load((REPO / "nbs" / "names.yaml").read_text(encoding="utf-8"))
    study = yaml.safe_load((REPO / "nbs" / "study.yaml").read_text(encoding="utf-8"))["sections"]
    given = [p.get("datasets", []) for s in study for p in s.get("parameters", {}).values()]
    assert {d for datasets in given for d in datasets} <= set(names["datasets"])
    assert set(names["datasets"]) <= {p.parent.name for p in (REPO / "data_manifests").glob("*/dataset.yaml")}
    for part in (names["datasets"], names["methods"]):
        assert len(set(part.values())) == len(part)
        assert not {id for id, name in part.items() if display_text(name) != name}


PAGES = ["nbs/paper/article.md", "nbs/paper/supplement.md", "nbs/plans.yaml", "README.md", "CONTRIBUTING.md",
         *sorted(p.relative_to(REPO).as_posix() for p in (REPO / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_what_the_code_does(page):
    text = (REPO / page).read_text(encoding="utf-8")
    none([*contradicted(text), *unit_by_manifest(text)])


@pytest.mark.parametrize("page", ["nbs/paper/article.md", "nbs/paper/supplement.md", "docs/trust.md"])
def test_pages_name_the_sets_without_patients_by_their_manifests(page):
    "The sets of the study whose manifest says `patient: unknown` are named, and no other"
    text = " ".join((REPO / page).read_text(encoding="utf-8").split())
    parameters = [v for s in yaml.safe_load((NBS / "study.yaml").read_text(encoding="utf-8"))["sections"]
                  for p in s.get("parameters", {}).values() for v in p.get("datasets", [])]
    facts = {d: yaml.safe_load((REPO / "data_manifests" / d / "dataset.yaml").read_text(encoding="utf-8"))
             for d in {*parameters}}
    unknown = {d for d, m in facts.items() if m["patient"] == "unknown"}
    said = next(s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z*{])", text) if "name none" in s)
    assert {d for d, name in SHORT.items() if name in said} == unknown == set(SHORT)


# The library, the tests, the repository

def test_modules_are_what_nbdev_exports(tmp_path):
    shutil.copytree(NBS, tmp_path / "nbs")
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(REPO / name, tmp_path / name)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    def content(root):
        library = root / "medseg_nb"
        files = {p.relative_to(library).as_posix(): p.read_bytes() for p in library.rglob("*.py")}
        return {k: v for k, v in files.items() if k != "_modidx.py"}  # an index for nbdev's pages, not committed
    wanted, found = content(tmp_path), content(REPO)
    assert set(wanted) == set(found)
    assert len(wanted) > 20
    none([k for k in wanted if wanted[k] != found[k]])


def test_each_section_has_its_notebook():
    order = [s["section"] for s in yaml.safe_load((NBS / "study.yaml").read_text(encoding="utf-8"))["sections"]]
    assert order and [name_of(p) for p in sorted((NBS / "study").glob("*.ipynb"))] == order


def test_code_loads_nothing_unsafe(): none([f"{p.name}: {f}" for p in CODE for f in nothing_unsafe(p)])
def test_tests_have_short_lines(): none([f"{p.name}: {f}" for p in CODE if REPO / "tests" in p.parents
                                         for f in short_lines(p)])
def test_tests_skip_with_reasons(): none([f"{p.name}: {f}" for p in CODE for f in skips_have_reasons(p)])


def test_library_imports_no_notebook_tool():
    "nbdev, fastcore and papermill are imported by `kit.execution` alone"
    wrong = [f"{p.name}: {m}" for p in (REPO / "medseg_nb").rglob("*.py")
             if p.stem not in ("execution", "_modidx") for n in nodes(p, ast.Import, ast.ImportFrom)
             for m in [*(a.name for a in n.names), getattr(n, "module", "") or ""]
             if m.split(".")[0] in ("nbdev", "fastcore", "papermill", "execnb")]
    assert wrong == []


def list_checkout() -> list[Path]:
    "Files of the working tree that are committed or would be"
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=REPO, capture_output=True, check=True).stdout.decode().split("\0")
    return [REPO / n for n in listed if n and (REPO / n).is_file()]


def test_checkout_is_light():
    "In blocks of 4 kB, as it lies on a disk"
    sizes = {p: -(-p.stat().st_size // 4096) * 4096 for p in list_checkout()}
    largest = sorted(sizes, key=sizes.get)[-9:]
    assert sum(sizes.values()) <= 40 * 2**20, [f"{p.relative_to(REPO)}: {sizes[p]:,}" for p in largest]


def test_repository_names_no_machine():
    own = [p for p in list_checkout() if p.suffix not in (".pdf", ".png")]
    assert len(own) > 50
    none([f"{p.relative_to(REPO)}: {f}" for p in own for f in no_machine_path(p)])


def test_lock_holds_names_and_versions_only():
    lines = [x for x in (REPO / "requirements.lock").read_text(encoding="utf-8").splitlines()
             if x.strip() and not x.startswith("#")]
    wanted = [Requirement(x) for x in lines]
    assert len(wanted) > 50 and all(r.url is None and re.fullmatch(r"==[\w.!+]+", str(r.specifier)) for r in wanted)
    assert "://" not in "\n".join(lines) and not any(x.startswith("-") for x in lines)
