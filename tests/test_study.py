"One command executes what changed, and nothing that goes wrong on the way harms earlier results."
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml

from conftest import REPO, Project, cell, refused, section, write_notebook
from medseg_nb.kit import execution as study
from medseg_nb.kit.core import InputError
from medseg_nb.paper import build as paper
from medseg_nb.paper.build import build

pytestmark = pytest.mark.long


def executed(done: subprocess.CompletedProcess) -> list[str]:
    "Sections that a call of `medseg paper` executed"
    assert done.returncode == 0, done.stderr
    return re.findall(r"^(\w+) \(smoke\): executed", done.stderr, re.M)


def shown(project: Project, section: str) -> str:
    "Text of a section's executed notebook"
    return "\n".join("".join(c["source"])
                     for c in json.loads(
        (project.reports / "smoke" / section / "notebook.ipynb").read_text(encoding="utf-8"))["cells"])


def page(project: Project) -> str: return (project.reports / "smoke" / "supplement.html").read_text(encoding="utf-8")


def failed(done: subprocess.CompletedProcess, code: int) -> str:
    "The one line of a call that failed after it had begun to work"
    assert done.returncode == code, (done.returncode, done.stderr)
    line, = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "Traceback" not in done.stderr and "; " in line
    return line


# What is executed

def test_first_call_executes_all(built):
    assert executed(built.first) == ["a", "b", "c"]
    assert {"reports/smoke/article.pdf", "reports/smoke/article.html", "reports/smoke/supplement.pdf",
            "reports/smoke/supplement.html",
            "reports/smoke/a/cases.csv.xz", "reports/smoke/a/curve.svg"} <= set(built.files())


def test_second_call_executes_nothing_and_changes_no_byte(project):
    before = project.files()
    start = time.monotonic()
    assert executed(project.medseg("paper")) == []
    assert time.monotonic() - start < 10 and project.files() == before


@pytest.mark.parametrize("old, new, section",
                         [("The mean of section b", "As new words say, the mean of section b", "b"),
                          ("# a comment of section a", "# quite another remark", "a"),
                          ("doubled = 2 * values", "doubled = 2  *  ( values )", "a")],
                         ids=["prose", "comment", "formatting"])
def test_words_execute_nothing_and_stand_in_the_notebook(project, old, new, section):
    numbers = {k: v for k, v in project.files().items() if k.endswith((".json", ".csv", ".svg"))}
    project.edit(section, old, new)
    assert executed(project.medseg("paper")) == []
    assert new in shown(project, section) and numbers.items() <= project.files().items()


def test_new_prose_stands_in_the_paper(project):
    assert "wholly rewritten" not in page(project)
    pdf = (project.reports / "smoke" / "supplement.pdf").read_bytes()
    project.edit("b", "The mean of section b is", "The wholly rewritten mean of section b is")
    assert executed(project.medseg("paper")) == []
    assert "wholly rewritten" in page(project) and (project.reports / "smoke" / "supplement.pdf").read_bytes() != pdf


def test_value_executes_its_section_and_dependants(project):
    project.edit("b", "before + 1", "before + 5")
    status = {r["section"]: r["state"] for r in json.loads(project.medseg("status", "--json").stdout)}
    assert status["a"] == "current" and status["b"] == "stale"
    assert executed(project.medseg("paper")) == ["b", "c"]


def test_refactoring_with_equal_results_stops_there(project):
    before = project.files()["reports/smoke/a/results.json"]
    project.edit("a", "doubled = 2 * values", "doubled = values + values")
    assert executed(project.medseg("paper")) == ["a"]
    assert project.files()["reports/smoke/a/results.json"] == before


def test_number_edited_by_hand_is_replaced(project):
    whole, path = project.files(), project.reports / "smoke" / "b" / "results.json"
    edited, count = re.subn(r'"value":[^,}]+', '"value":0.5', path.read_text())
    assert count
    path.write_text(edited)
    assert executed(project.medseg("paper")) == ["b"]
    assert project.files() == whole


def test_only_leaves_other_sections_stale(project):
    project.edit("a", "2 * values", "3 * values")
    done = project.medseg("paper", "--only", "a")
    assert executed(done) == ["a"]
    assert "Stale" in page(project) and json.loads(project.medseg("status", "--json").stdout)[1]["state"] == "stale"


def test_two_fresh_projects_are_byte_identical(twins):
    mine, other = (p.files() for p in twins)
    assert executed(twins[1].first) == ["a", "b", "c"] and set(mine) == set(other)
    assert [k for k in mine if mine[k] != other[k]] == []


def test_no_machine_path_in_results(built):
    assert [k for k, v in built.files().items() if str(built.root).encode() in v] == []


# What is computed only once

def counted(monkeypatch, module, name: str) -> list:
    "Arguments of all calls of a function from now on"
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: (calls.append(given), function(*given))[1])
    return calls


def test_what_a_section_depends_on_is_computed_once(project, monkeypatch):
    shutil.rmtree(project.runs / "computed")
    read, typeset = counted(monkeypatch, study, "_read_section"), counted(monkeypatch, paper, "typeset_pdf")
    compared = counted(monkeypatch, study, "_module_differs")
    assert executed(project.call("paper")) == [] and sorted(read) == [("a",), ("b",), ("c",)]
    assert len(typeset) == 2 and len(compared) == 3  # article and supplement
    assert executed(project.call("paper")) == [] and project.call("status").returncode == 0
    assert (len(read), len(typeset), len(compared)) == (3, 2, 3)
    project.edit("b", "# Section b", "# The section b")
    assert executed(project.call("paper")) == [] and (len(read), len(typeset), len(compared)) == (4, 4, 4)


DAMAGES = dict(empty=lambda text: "", cut=lambda text: text[:-5], garbled=lambda text: text.replace('"', "'"),
               other=lambda text: "[]\n[]")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_answers_are_computed_again(project, damage):
    kept = sorted((project.runs / "computed").rglob("*.json"))
    whole, before = {p: p.read_text() for p in kept}, project.files()
    assert {p.parent.name for p in kept} >= {"computed", "modules", "sections"}
    for p in kept: p.write_text(damage(whole[p]))
    assert executed(project.medseg("paper")) == [] and project.files() == before
    assert {p: p.read_text() for p in kept} == whole


# Side by side

WAIT = """#| study
report, flags = Report("{me}", profile), folder("runs")
(flags / "at-work-{me}").write_text("")
until = time.monotonic() + 20
while not (flags / "at-work-{other}").exists() and time.monotonic() < until: time.sleep(.05)
print("a line of {me}", file=sys.stderr)
report.numbers({{"value.mean": int((flags / "at-work-{other}").exists())}})"""


def add_independent(project: Project) -> None:
    "Two sections that read nothing, and wait for each other"
    path = project.root / "nbs" / "study.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["sections"]
    rows += [dict(section=name) for name in "de"]
    path.write_text(yaml.safe_dump(dict(sections=rows)), encoding="utf-8")
    for number, me, other in ((40, "d", "e"), (50, "e", "d")):
        cells = section(me, WAIT.format(me=me, other=other))
        cells[3] = cell(f"import sys\n{''.join(cells[3]['source'])}")
        write_notebook(project.root / "nbs" / "study" / f"{number}_{me}.ipynb", cells)


def test_side_by_side_gives_the_same_bytes(fresh, built):
    assert sorted(executed(fresh.medseg("paper", "-j", "2"))) == ["a", "b", "c"]
    assert fresh.files() == built.files()


def test_independent_sections_are_executed_at_once(project):
    add_independent(project)
    done = project.medseg("paper", "-j", "2")
    assert sorted(executed(done)) == ["d", "e"]
    for name in "de":
        results = json.loads((project.reports / "smoke" / name / "results.json").read_text())
        assert results["numbers"]["value.mean"]["value"] == 1, "both were at work at the same time"
    assert [x for x in done.stderr.splitlines() if x.startswith("[d] ")] == ["[d] a line of d"]


def test_error_side_by_side(fresh):
    add_independent(fresh)
    fresh.edit("a", "2 * values", "2 / 0 * values")
    done = fresh.medseg("paper", "-j", "3")
    assert "ZeroDivisionError" in failed(done, 1)
    assert sorted(re.findall(r"^(\w+) \(smoke\): executed", done.stderr, re.M)) == ["d", "e"], "they were at work"
    assert sorted(p.name for p in (fresh.reports / "smoke").iterdir()) == ["d", "e"]
    fresh.edit("a", "2 / 0 * values", "2 * values")
    assert executed(fresh.medseg("paper")) == ["a", "b", "c"]


# Faults on the way

def test_failing_notebook_keeps_earlier_results(project):
    before = project.files()
    project.edit("b", "before + 1", "before / 0")
    line = failed(project.medseg("paper"), 1)
    kept = project.runs / "failed" / "smoke-b.ipynb"
    assert "b: " in line and "ZeroDivisionError" in line and str(kept) in line
    assert "ZeroDivisionError" in kept.read_text(encoding="utf-8") and project.files() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed at once")
def test_kill_at_any_moment(project):
    draws, whole, kills = random.Random(2), project.files(), 0
    def forget(section): (project.runs / "stamps" / "smoke" / f"{section}.json").unlink(missing_ok=True)
    forget("c")
    start = time.monotonic()
    assert executed(project.medseg("paper")) == ["c"]
    lasts = time.monotonic() - start
    for _ in range(10):
        forget(draws.choice("abc"))
        process = project.start("paper")
        try: process.wait(draws.uniform(.1, lasts))
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); kills += 1
        process.communicate()
        files = project.files()
        for name in [n for n in files if n.endswith("notebook.ipynb")]: json.loads(files.pop(name))  # filled at the end
        assert files.items() <= whole.items()  # whatever stands there is whole
    assert kills >= 5 and project.medseg("paper").returncode == 0
    assert project.files() == whole and not list(project.reports.rglob(".*"))


def test_a_notebook_that_was_half_written_goes(project):
    "Killed while prose was filled in, which executes nothing: the next call does not execute the section either"
    half_written = project.reports / "smoke" / "c" / ".notebook.ipynb-eqx2ebaq"
    half_written.write_text("{")
    done = project.medseg("paper")
    assert done.returncode == 0 and executed(done) == [] and not half_written.exists()


def test_two_calls_at_once(fresh, built):
    both = [fresh.start("paper") for _ in range(2)]
    ends = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], ends
    assert sum(err.count(": executed") for _, err in ends) == 3
    assert fresh.files() == built.files()


@pytest.fixture
def disk(tmp_path):
    "A disk of 6 MiB; the function limits what is free on it, in bytes"
    if sys.platform != "linux" or os.geteuid() != 0: pytest.skip("mounting a small disk needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)],
                          capture_output=True, text=True)
    if done.returncode: pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free", [0, 12_000])
def test_full_disk(built, disk, free):
    project = built.copy(disk / "project")
    project.edit("c", "before + 1", "before + 7")
    before = project.files()
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free // 4096 * 4096 - free))
    line = failed(project.medseg("paper"), 4)
    assert "full" in line and project.files() == before
    (disk / "filler").unlink()
    assert executed(project.medseg("paper")) == ["c"]


NO_SPACE = textwrap.dedent("""
    import errno, os, tempfile
    _made = tempfile.mkstemp
    def mkstemp(suffix=None, prefix=None, dir=None, text=False):
        if (prefix or "").startswith(f".{os.environ['TEST_FULL']}-"): raise OSError(errno.ENOSPC, "No space left on device")
        return _made(suffix, prefix, dir, text)
    tempfile.mkstemp = mkstemp
""")


@pytest.mark.parametrize("file", ["results.json", "provenance.json", "article.pdf"])
def test_injected_full_disk(project, tmp_path, file):
    (tmp_path / "sitecustomize.py").write_text(NO_SPACE)
    project.edit("c", "before + 1", "before + 7")
    before = project.files()
    assert "full" in failed(project.medseg("paper", PYTHONPATH=f"{tmp_path}{os.pathsep}{REPO}", TEST_FULL=file), 4)
    changed = {k for k, v in project.files().items() if v != before[k]}
    assert all("/c/" in k for k in changed) if file == "article.pdf" else not changed
    assert set(project.files()) == set(before) and not list(project.reports.rglob(".*"))


def test_read_only_disk(built, disk):
    project = built.copy(disk / "project")
    project.edit("a", "2 * values", "3 * values")
    before = project.files()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    line = failed(project.medseg("paper"), 2)
    assert "cannot be written" in line and project.files() == before


@pytest.mark.parametrize("name", ["reports", "runs"])
def test_file_in_the_way_of_a_folder(fresh, name):
    # a folder without write permission would not do: root may write everywhere
    (fresh.root / name).write_text("in the way")
    line = failed(fresh.medseg("paper"), 2)
    assert name in line and "cannot be written" in line and (fresh.root / name).read_text() == "in the way"


# What is refused

@pytest.mark.parametrize("words", [["paper"], ["run", "a"]], ids=" ".join)
def test_module_that_differs_from_its_notebook(fresh, words):
    text = (REPO / "nbs" / "library" / "0_kit" / "00_core.ipynb").read_text(encoding="utf-8")
    place = fresh.root / "nbs" / "library" / "0_kit"
    place.mkdir(parents=True)
    (place / "00_core.ipynb").write_text(text.replace('\\"smoke\\", \\"cpu\\"', '\\"smoke\\", \\"gpu\\"', 1),
                                         encoding="utf-8")
    done = fresh.medseg(*words)
    assert (refused(done, "core.py", "differs from nbs/library/0_kit/00_core.ipynb")
            and "make export" in done.stderr and not fresh.reports.exists())


@pytest.mark.parametrize("profile", ["cpu", "full"])
def test_profile_refuses_results_of_another(project, profile):
    shutil.copytree(REPO / "data_manifests" / "skin_isic2017", project.root / "data_manifests" / "skin_isic2017")
    (project.root / "nbs" / "study.yaml").write_text("sections: [{section: a}]", encoding="utf-8")
    # not on this machine, so nothing is executed
    project.edit("a", "seed = 1", 'seed = 1\ndatasets = ["skin_isic2017"]')
    shutil.copytree(project.reports / "smoke", project.reports / profile, ignore=shutil.ignore_patterns("paper.*"))
    done = project.medseg("paper", "--profile", profile)
    # without one it ends before it looks
    if profile == "full" and done.returncode == 4: assert "GPU" in failed(done, 4)
    else: assert "results of profile smoke" in failed(done, 2)
    with project.inside(), pytest.raises(InputError, match="results of profile smoke"):
        build(profile, dict(a="current"))
    assert not list((project.reports / profile).glob("paper.*"))


def test_smoke_results_do_not_make_a_full_section_current(project):
    shutil.copytree(project.reports / "smoke", project.reports / "full")
    rows = json.loads(project.medseg("status", "--profile", "full", "--json").stdout)
    assert [r["state"] for r in rows] == ["stale"] * 3
