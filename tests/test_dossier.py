"The papers of a model: each test that a risk names exists, numbers are those of the card, and nothing claims too much."
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from medseg_nb.deployment.dossier import compose_dossier, describe_shipped, list_missing, write_dossier
from medseg_nb.deployment.reader_page import page_file
from medseg_nb.kit.core import InputError
from medseg_nb.training.shipped_models import list_shipped_models, read_model_card

TEMPLATE = page_file("dossier.md")
TEST = r"`(tests/\w+\.py)(?:::(\w+))?`"


def risks(text): return [[c.strip() for c in line.strip("|").split("|")] for line in text.split("\n")
                         if re.match(r"\| R\d", line)]


def names_of(path):
    return {n.name for n in ast.walk(ast.parse((REPO / path).read_text())) if isinstance(n, ast.FunctionDef)}


def test_each_test_that_a_risk_names_exists():
    named = re.findall(TEST, TEMPLATE)
    assert len([n for n in named if n[1]]) >= 20
    for path, name in named: assert (REPO / path).is_file() and (not name or name in names_of(path)), (path, name)


def test_each_risk_has_a_test_or_says_that_there_is_none():
    rows = risks(TEMPLATE)
    assert [r[0] for r in rows] == [f"R{n}" for n in range(1, len(rows) + 1)] and len(rows) >= 12
    for row in rows: assert len(row) == 5 and all(row) and (re.search(TEST, row[4]) or "MISSING" in row[4]), row


def test_files_and_commands_that_are_named_exist():
    from typer.main import get_command

    from medseg_nb.cli import app
    known = get_command(app)
    for name in re.findall(r"`((?:nbs|tests)/[\w/.]+|[A-Z]+\.md|requirements\.lock)`", TEMPLATE):
        assert (REPO / name).exists(), name
    commands = re.findall(r"`medseg ([a-z ]+)`", TEMPLATE)
    assert len(commands) >= 6
    for words in commands:
        group = known
        for word in words.split(): group = group.commands[word]


@pytest.mark.parametrize("name", list_shipped_models())
def test_numbers_are_those_of_the_card(name):
    card = read_model_card(name)
    text = compose_dossier(describe_shipped(card), TEMPLATE)
    for s in card.scores: assert f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]" in text
    for fact in (card.files["weights.safetensors"], card.run, card.purpose, card.attribution, card.license,
                 f"{card.training_patients} {card.unit}s", f"{card.missed} held-out regions"):
        assert fact in text, fact
    assert not re.search(r"\{[a-z]+\.[a-z_]+\}", text), "every brace is filled"


def test_it_says_research_use_and_claims_no_conformity():
    text = compose_dossier(describe_shipped(read_model_card("skin")), TEMPLATE)
    first = next(line for line in text.split("\n")[1:] if line)
    assert first.startswith("**Research use only. This is no medical device") and "starting point" in first
    claims = (r"\b(?:complies|compliant|conforms|is certified|is approved|is cleared|CE[- ]mark\w*|"
              r"meets the requirements)\b")
    assert not re.search(claims, text, re.I), re.search(claims, text, re.I)


def test_what_is_missing_is_marked_and_listed():
    text = compose_dossier(describe_shipped(read_model_card("nuclei")), TEMPLATE)
    head, rest = text.split("## The model")
    n_lines = sum("MISSING" in line for line in rest.split("\n"))
    assert n_lines == len(list_missing(text)) == sum(line.startswith("- **") for line in head.split("\n")) > 20
    lacking = describe_shipped(read_model_card("nuclei").model_copy(update=dict(unusual={})))
    assert lacking["model.unusual"].startswith("MISSING")


def test_a_run_without_rows_or_with_damaged_ones_is_refused(tmp_path, monkeypatch):
    from medseg_nb.kit.report import ROWS_FILE
    from medseg_nb.training.training import Config, run_training
    monkeypatch.setenv("MEDSEG_RUNS", str(tmp_path / "runs"))
    key = run_training(Config("phantom_skin", "unet", steps=2, size=32, width=4, augment="none"), weights=True).name
    words = [sys.executable, "-c", "from medseg_nb.cli import main; main()", "dossier", key, "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0 and "research use only" in done.stdout, done.stderr
    page = (tmp_path / "out" / "dossier.html").read_text()
    assert key in page and "<mark>MISSING</mark>: purpose of a run" in page
    assert "http" not in re.sub(r">[^<]*<", "><", page)
    rows = tmp_path / "runs" / key / ROWS_FILE
    content = rows.read_bytes()
    for damage, fault in ((content[:40], "is damaged"), (None, "has lost its rows")):
        rows.write_bytes(damage) if damage else rows.unlink()
        done = subprocess.run(words, capture_output=True, text=True, cwd=REPO)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and fault in done.stderr, done.stderr
    with pytest.raises(InputError, match="there is no such run"): write_dossier("nosuch", tmp_path / "x")


def test_a_changed_model_gets_no_dossier(tmp_path, monkeypatch):
    import shutil
    shutil.copytree(REPO / "models", tmp_path / "models")
    monkeypatch.setenv("MEDSEG_MODELS", str(tmp_path / "models"))
    path = Path(tmp_path / "models" / "phantom" / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="its hash differs"): write_dossier("phantom", tmp_path / "out")
    assert not (tmp_path / "out").exists()
