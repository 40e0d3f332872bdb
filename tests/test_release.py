"What a release needs beside the code: one version everywhere, files that say what is true, and a linter that is silent"
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import medseg_nb
import pytest
import yaml
from conftest import REPO

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(REPO / "settings.ini", encoding="utf-8")
VERSION = SETTINGS["DEFAULT"]["version"]


def read(name: str) -> str: return (REPO / name).read_text(encoding="utf-8")


def test_one_version_everywhere():
    newest = re.search(r"^## (\S+?),? ", read("CHANGELOG.md"), re.M)[1]
    assert {VERSION} == {newest, medseg_nb.__version__, yaml.safe_load(read("CITATION.cff"))["version"],
                         json.loads(read(".zenodo.json"))["version"]}


def test_title_and_license_are_the_same():
    citation, zenodo = yaml.safe_load(read("CITATION.cff")), json.loads(read(".zenodo.json"))
    assert (citation["title"], citation["license"]) == (zenodo["title"], zenodo["license"])
    assert sorted(citation["keywords"]) == sorted(zenodo["keywords"])


@pytest.mark.parametrize("path", sorted((REPO / ".github").rglob("*.yml")), ids=lambda p: p.stem)
def test_files_of_the_forge_are_read(path):
    "A workflow has jobs whose steps do something; a form asks for something"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert all({"uses", "run"} & set(step) for job in content["jobs"].values() for step in job["steps"])
    elif "body" in content:
        assert content["name"] and content["description"] and all(part["type"] for part in content["body"])
    else: assert content


def test_tests_that_security_names_exist():
    cells = re.findall(r"`(tests/\w+\.py|nbs/[\w/]+\.ipynb)`(?: \(`(\w+)`\))?", read("SECURITY.md"))
    assert len(cells) >= 4
    for name, word in cells: assert word in read(name), (name, word)


def test_hooks_call_programs_that_are_there():
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    programs = {hook["entry"].split()[0] for hook in hooks}
    place = Path(sys.executable).parent
    assert programs == {"nbdev_export", "nbdev_clean", "ruff"}
    assert all(list(place.glob(f"{name}*")) for name in programs)


def lint(place: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--config", REPO / "pyproject.toml",
                           place], cwd=REPO, capture_output=True, text=True)


def test_no_name_is_undefined_or_unused(tmp_path):
    clean = lint(REPO)
    assert clean.returncode == 0, clean.stdout[-2000:]
    (tmp_path / "spoilt.py").write_text("import os\nprint(undefined)\n")
    spoilt = lint(tmp_path)
    assert spoilt.returncode == 1 and "F401" in spoilt.stdout and "F821" in spoilt.stdout
