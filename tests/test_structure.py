"""The order of the chapters is the architecture. Each rule reads the notebooks of a folder and returns its faults; each
is shown a folder that breaks it."""
import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import REPO, cell, write_notebook

NBS = REPO / "nbs"


@dataclass(frozen=True)
class Notebook:
    "A notebook, by what it exports"
    name: str   # chapter.module, study.section, course.lesson or cli
    rank: tuple[int, int] | None  # number of its chapter and its own; None outside the library
    trees: tuple[ast.Module, ...]

    @property
    def folder(self) -> str: return self.name.partition(".")[0]


def read(path: Path, nbs: Path) -> Notebook:
    sources = [c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    trees = tuple(ast.parse("".join(s)) for s in sources)
    top, *inner = path.relative_to(nbs).parent.parts
    stem = re.sub(r"^\d+_", "", path.stem)
    if top != "library": return Notebook(f"{top}.{stem}", None, trees)
    if not inner: return Notebook(stem, (99, 0), trees)  # the command line stands behind all chapters
    number, _, chapter = inner[0].partition("_")
    return Notebook(f"{chapter}.{stem}", (int(number), int(path.stem.partition("_")[0])), trees)


def notebooks(nbs: Path) -> dict[str, Notebook]:
    places = [p for folder in ("library", "study", "course") for p in sorted((nbs / folder).rglob("*.ipynb"))]
    return {n.name: n for n in (read(p, nbs) for p in places)}


def imports(notebook: Notebook, known: set[str]) -> Iterator[tuple[str, str | None]]:
    """Modules of the kit that a notebook imports, within functions and tests too, each with the name that it takes from
    there"""
    for node in (n for tree in notebook.trees for n in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith("medseg_nb."): yield a.name.removeprefix("medseg_nb."), None
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medseg_nb":
            place = node.module.removeprefix("medseg_nb").lstrip(".")
            for a in node.names:
                whole = f"{place}.{a.name}".lstrip(".")
                yield (whole, None) if whole in known else (place, a.name)


# Rules

def only_what_stands_before(nbs: Path) -> list[str]:
    "A library module imports from an earlier chapter, or from an earlier notebook of its own"
    found, faults = notebooks(nbs), []
    for n in (n for n in found.values() if n.rank):
        for place, _ in imports(n, set(found)):
            if place.startswith("study."): continue  # another rule's
            if place not in found: faults.append(f"{n.name} imports {place}, which no notebook exports")
            elif not found[place].rank or found[place].rank >= n.rank:
                faults.append(f"{n.name} imports {place}, which stands behind it")
    return sorted(set(faults))


def no_section_is_imported(nbs: Path) -> list[str]:
    "What sections share stands in the library"
    found = notebooks(nbs)
    return sorted({f"{n.name} imports the section {place}"
                   for n in found.values() for place, _ in imports(n, set(found))
                   if place.partition(".")[0] in ("study", "course")})


def sections_import_the_library(nbs: Path) -> list[str]:
    found = notebooks(nbs)
    return sorted({f"{n.name} imports {place}, which no notebook exports" for n in found.values() if not n.rank
                   for place, _ in imports(n, set(found))
                   if place not in found and place.partition(".")[0] not in ("study", "course")})


def no_private_names(nbs: Path) -> list[str]:
    "A name that begins with an underscore belongs to its module"
    found = notebooks(nbs)
    return sorted({f"{n.name} imports {name} of {place}"
                   for n in found.values() for place, name in imports(n, set(found))
                   if name and name.startswith("_") and place != n.name})


def is_choice_by_profile(node: ast.AST) -> bool:
    "Whether a name `profile` is compared with names of profiles"
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    return (any(isinstance(s, ast.Name) and s.id == "profile" for s in sides)
            and any(isinstance(n, ast.Constant) and isinstance(n.value, str) for s in sides for n in ast.walk(s)))


def plans_stand_in_one_file(nbs: Path) -> list[str]:
    "What a profile trains is no constant of a section, and no choice by the profile's name"
    faults = []
    for n in (n for n in notebooks(nbs).values() if n.folder == "study"):
        for node in (x for tree in n.trees for x in ast.walk(tree)):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
            faults += [f"{n.name} plans trainings by {name}" for name in names
                       if re.search(r"(^|_)(PLANS?|SETTINGS|STEPS|SECONDS)$", name)]
            if is_choice_by_profile(node): faults.append(f"{n.name} chooses by profile: {ast.unparse(node)}")
    return sorted(set(faults))


RULES = [plans_stand_in_one_file, only_what_stands_before, no_section_is_imported, sections_import_the_library,
         no_private_names]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule(rule):
    faults = rule(NBS)
    assert not faults, "\n" + "\n".join(faults)


def test_chapters_have_one_number_each():
    folders = sorted(p.name for p in (NBS / "library").iterdir() if p.is_dir())
    assert [int(f.partition("_")[0]) for f in folders] == list(range(len(folders)))
    for folder in folders:
        numbers = [p.stem.partition("_")[0] for p in (NBS / "library" / folder).glob("*.ipynb")]
        assert len(set(numbers)) == len(numbers), folder


# Each rule can fail

GOOD = {"library/0_kit/00_core": "import math", "library/0_kit/01_keys": "from medseg_nb.kit.core import x",
        "library/1_images/00_files": "from medseg_nb.kit import core, keys",
        "library/99_cli": "from medseg_nb.images.files import y",
        "study/01_a": "from medseg_nb.images import files", "study/02_b": "from medseg_nb.kit.core import x",
        "course/own_data": "from medseg_nb.kit.core import x"}

SPOILT = {"a later chapter": (only_what_stands_before, "library/0_kit/01_keys", "from medseg_nb.images.files import y"),
          "a later chapter, within a function": (only_what_stands_before, "library/0_kit/01_keys",
                                                 "def f():\n    from medseg_nb.images import files\n    return files"),
          "a later notebook of its chapter": (only_what_stands_before, "library/0_kit/00_core",
                                              "import medseg_nb.kit.keys"),
          "itself": (only_what_stands_before, "library/0_kit/00_core", "from medseg_nb.kit.core import x"),
          "the command line": (only_what_stands_before, "library/1_images/00_files", "from medseg_nb.cli import main"),
          "what nobody exports": (only_what_stands_before, "library/1_images/00_files",
                                  "from medseg_nb.kit.nothing import x"),
          "a section in the library": (no_section_is_imported, "library/1_images/00_files",
                                       "from medseg_nb.study.a import x"),
          "a section on the command line": (no_section_is_imported, "library/99_cli",
                                            "def f():\n    from medseg_nb.study import a\n    return a"),
          "a section in a section": (no_section_is_imported, "study/02_b", "from medseg_nb.study import a"),
          "a section in a lesson": (no_section_is_imported, "course/own_data", "from medseg_nb.study.a import x"),
          "the former layout in a section": (sections_import_the_library, "study/02_b", "from medseg_nb.core import x"),
          "a plan in a section": (plans_stand_in_one_file, "study/01_a", "PHANTOM_STEPS = 200"),
          "a profile's budget in a section": (plans_stand_in_one_file, "study/01_a",
                                              "def list_runs(profile): return 60 if profile == 'smoke' else 9"),
          "a private name": (no_private_names, "library/1_images/00_files", "from medseg_nb.kit.core import _x"),
          "a private name in a section": (no_private_names, "study/01_a", "from medseg_nb.kit.core import x, _x"),}


def lay_out(nbs: Path, sources: dict[str, str]) -> Path:
    "Notebooks of one code cell each"
    for name, source in sources.items():
        place = nbs / f"{name}.ipynb"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_notebook(place, [cell(source)])
    return nbs


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_lets_a_good_layout_pass(tmp_path, rule): assert rule(lay_out(tmp_path, GOOD)) == []


@pytest.mark.parametrize("name", SPOILT)
def test_rule_sees_a_spoilt_layout(tmp_path, name):
    rule, place, source = SPOILT[name]
    faults = rule(lay_out(tmp_path, GOOD | {place: source}))
    assert len(faults) == 1 and faults[0].startswith(("kit.", "images.", "cli ", "study.", "course.")), faults


def test_every_rule_has_a_spoilt_layout(): assert {r for r, *_ in SPOILT.values()} == set(RULES)
