"README.md, CONTRIBUTING.md and docs/: what these pages name exists. Each rule is shown a page that breaks it."
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import typer

from conftest import PLAIN, REPO
from medseg_nb.cli import app
from medseg_nb.paper.readme import list_folder, replace_block

FOLDERS = sorted({p.parent / "README.md" for p in (REPO / "nbs").rglob("*.ipynb")} | {REPO / "nbs" / "README.md"})
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md")), *FOLDERS]
COMMANDS = REPO / "docs" / "commands.md"
LONGEST = 150  # lines of README.md
ROWS = 8       # rows of a table there


# Reading Markdown

def code_blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", text, re.S | re.M)


def without_blocks(text: str) -> str: return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
def code_spans(text: str) -> list[str]: return re.findall(r"`([^`\n]+)`", without_blocks(text))


def anchors(text: str) -> set[str]:
    "Names of a page's headings, as the usual hosts make them"
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


# Rules: each takes a page and its text and returns its faults

def short(page: Path, text: str) -> list[str]:
    n_lines = len(text.splitlines())
    too_long = page.name == "README.md" and n_lines > LONGEST
    return [f"has {n_lines} lines, and at most {LONGEST} are read"] if too_long else []


def few_rows(page: Path, text: str) -> list[str]:
    "A table of results on the first page is one that is read"
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    results = [t for t in tables if page.name == "README.md" and re.search(r"\d \[-?\d", t)]
    counts = [len(t.splitlines()) - 2 for t in results]
    return [f"has a table of {n} rows, and at most {ROWS} are read" for n in counts if n > ROWS]


def links_lead_somewhere(page: Path, text: str) -> list[str]:
    faults = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if re.match(r"[a-z]+:", link): continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists(): faults.append(f"links to {link}, which does not exist")
        elif anchor:
            there = text if target == page else target.read_text(encoding="utf-8")
            if anchor not in anchors(there): faults.append(f"links to {link}, and that page has no such heading")
    return faults


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    "The command that some words call, and the words that are left to it; a name that does not exist is refused"
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name = words[0] if words else "nothing"
        if name not in command.commands: raise ValueError(f"there is no command `{name}`")
        command, words = command.commands[name], words[1:]
    return command, words


def calls(line: str) -> list[list[str]]:
    "What a line of a shell gives to `medseg`, one list of words a call"
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if re.fullmatch(r"[|&;<>()]+", word): found.append(None)
        elif re.fullmatch(r"(?:.*bin/)?medseg", word): found.append([])
        elif found and found[-1] is not None: found[-1].append(word)
    return [words for words in found if words is not None]


def call_fault(words: list[str]) -> str:  # empty where there is none
    "Why a call is refused before anything runs: by the tree of commands, which parses it as a call would"
    if "--help" in words: words = words[:words.index("--help")]
    try:
        command, rest = find_command(words)
        if words and rest != ["--help"]: command.make_context(command.name, list(rest))
    except ValueError as e: return str(e)
    except typer.BadParameter.__base__ as e: return e.format_message()
    return ""


def commands_are_parsed(page: Path, text: str) -> list[str]:
    "Every call in a code block"
    found = [words for block in code_blocks(text, "sh|bash|") for line in block.splitlines() for words in calls(line)]
    return [f"calls `medseg {' '.join(words)}`: {fault}" for words in found if (fault := call_fault(words))]


def usage_fault(usage: str) -> str:  # empty where there is none
    "What a usage such as `medseg diff [A] [--json]` names and the command line does not know"
    words = re.sub(r"[\[\]…]", " ", usage).split()[1:]
    try: command, rest = find_command(words)
    except ValueError as e: return str(e) if words else ""
    known = {o for p in command.params for o in p.opts} | {"--help"}
    strange = [w for w in rest if w.startswith("-") and w.partition("=")[0] not in known]
    return f"{command.name} has no option {strange[0]}" if strange else ""


def usages_are_known(page: Path, text: str) -> list[str]:
    "Every `medseg …` within a sentence or a table; a group of commands may be named alone"
    found = [span for span in code_spans(text) if re.match(r"medseg [a-z]", span)]
    groups = [f"medseg {name}" for name, c in typer.main.get_command(app).commands.items() if hasattr(c, "commands")]
    faults = {span: usage_fault(span) for span in found if span not in groups}
    return [f"names `{span}`: {fault}" for span, fault in faults.items() if fault]


OWN = re.compile(r"(?<![\w./<>*-])(?:nbs|medseg_nb|tests|workflow|docs|data_manifests)/[\w./<>*-]*")
PLACEHOLDER = re.compile(r"<|NN_|\bID\b")


def paths_exist(page: Path, text: str) -> list[str]:
    "Every path of the repository in code; of one with a placeholder, the folder before it"
    faults, code = [], "\n".join([*code_spans(text), *code_blocks(text)])
    for path in (name.rstrip(".") for name in OWN.findall(code)):
        parts = Path(path).parts
        first = next((k for k, part in enumerate(parts) if PLACEHOLDER.search(part)), len(parts))
        if not list(REPO.glob("/".join(parts[:first]))): faults.append(f"names {path}, which does not exist")
    return faults


def targets_exist(page: Path, text: str) -> list[str]:
    "Every target of make"
    known = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"^make ([a-z]+)", "\n".join([*code_spans(text), *code_blocks(text)]), re.M)
    return [f"names `make {t}`, which the Makefile does not have" for t in named if t not in known]


def variables_are_read(page: Path, text: str) -> list[str]:
    "Every setting from the environment is one that the library looks at"
    code = "\n".join(p.read_text(encoding="utf-8") for p in (REPO / "medseg_nb").rglob("*.py"))
    folders = {f"MEDSEG_{name.upper()}" for name in re.findall(r'folder\("(\w+)"', code)}
    known = folders | set(re.findall(r"MEDSEG_[A-Z]+", code))
    return [f"names {v}, which nothing reads" for v in sorted(set(re.findall(r"MEDSEG_[A-Z]+", text)) - known)]


RULES = [short, few_rows, links_lead_somewhere, commands_are_parsed, usages_are_known, paths_exist, targets_exist,
         variables_are_read]
SPOILT = {
    "long": (short, "line\n" * (LONGEST + 1)),
    "many rows": (few_rows, "| model | Dice |\n| :-- | --: |\n" + "| a | 0.5 [0.4, 0.6] |\n" * (ROWS + 1)),
    "dead link": (links_lead_somewhere, "[a](docs/nowhere.md)"),
    "dead anchor": (links_lead_somewhere, "# A title\n[a](#another-title)"),
    "dead anchor elsewhere": (links_lead_somewhere, "[a](CONTRIBUTING.md#nowhere)"),
    "no command": (commands_are_parsed, "```sh\n.venv/bin/medseg papers --profile cpu\n```"),
    "no command of a group": (commands_are_parsed, "```sh\nmedseg data drop skin_ph2\n```"),
    "no option": (commands_are_parsed, "```sh\nA=b medseg paper --profiles cpu   # a comment\n```"),
    "lacks an option": (commands_are_parsed, "```sh\ntrue && medseg data add scans/ --yes\n```"),
    "no number": (commands_are_parsed, "```sh\nmedseg train --data a --model b --seed one\n```"),
    "one argument too many": (commands_are_parsed, "```\nmedseg data show a b\n```"),
    "no command in a sentence": (usages_are_known, "Call `medseg bring ID`."),
    "no option in a sentence": (usages_are_known, "Call `medseg diff [A] [--quiet]`."),
    "no file": (paths_exist, "See `nbs/study.yml`."),
    "former layout": (paths_exist, "```\njupyter lab nbs/01_keys.ipynb\n```"),
    "folder of a placeholder": (paths_exist, "Write `nbs/sections/NN_name.ipynb`."),
    "no file of a pattern": (paths_exist, "Read `medseg_nb/kit/*.txt`."),
    "no target": (targets_exist, "```sh\nmake papers\n```"),
    "no setting": (variables_are_read, "Set `MEDSEG_NOWHERE`."),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_pages_name_what_exists(rule):
    faults = [f"{p.relative_to(REPO)} {fault}" for p in PAGES for fault in rule(p, p.read_text(encoding="utf-8"))]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("name", SPOILT)
def test_rule_sees_a_spoilt_page(name):
    rule, text = SPOILT[name]
    assert rule(REPO / "README.md", text) != []


def test_every_rule_has_a_spoilt_page(): assert {rule for rule, _ in SPOILT.values()} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_lets_a_good_page_pass(rule):
    text = ("# A title, and: more\n[a](#a-title-and-more) [b](CONTRIBUTING.md#four-steps) [c](https://example.org)\n"
            "`medseg data` `medseg diff [A]` `medseg`\n"
            "```sh\nX=/data/medseg .venv/bin/medseg data add scans/ --id a --yes  # a\n"
            "medseg paper | tee log\nmake env\n```\n"
            "`nbs/study/NN_name.ipynb` `nbs/library/<n>_<chapter>/` `tests/test_*.py` `MEDSEG_DATA`")
    assert rule(REPO / "README.md", text) == []


@pytest.mark.parametrize("page", FOLDERS, ids=lambda p: p.parent.name)
def test_a_folder_lists_its_notebooks(page):
    "Generated by `medseg paper`; a notebook that came, went or asks another question is seen"
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n> .+\?\n", text), "begins with its title and its question"
    assert replace_block(page.name, text, "notebooks", list_folder(page.parent)) == text
    assert all(p.name in text for p in page.parent.glob("*.ipynb"))


def test_there_are_pages_with_calls():
    texts = [p.read_text(encoding="utf-8") for p in PAGES]
    lines = "\n".join(block for text in texts for block in code_blocks(text, "sh")).splitlines()
    assert len(PAGES) > 7 and sum(len(calls(line)) for line in lines) > 15


# The table of commands is whole

def leaves(group: click.Command | None = None, words: tuple = ("medseg",)) -> dict[str, click.Command]:
    "Every command of the command line by its name"
    group, found = group or typer.main.get_command(app), {}
    for name, c in group.commands.items():
        found |= leaves(c, (*words, name)) if hasattr(c, "commands") else {" ".join((*words, name)): c}
    return found


def missing_usages(text: str) -> list[str]:
    "Commands, and options of theirs, that no usage of a page names"
    faults = []
    for name, command in leaves().items():
        usages = [re.sub(r"[\[\]]", " ", u).split() for u in code_spans(text) if re.match(rf"{name}( |$)", u)]
        options = sorted({p.opts[0] for p in command.params if p.param_type_name == "option"})
        faults += [f"{name} {o}" for o in options if not any(o in u for u in usages)] if usages else [name]
    return faults


def test_table_of_commands_is_whole(): assert missing_usages(COMMANDS.read_text(encoding="utf-8")) == []


def test_missing_command_and_option_are_seen():
    text = COMMANDS.read_text(encoding="utf-8")
    assert missing_usages(text.replace("`medseg doctor [--json]`", "")) == ["medseg doctor"]
    assert missing_usages(text.replace(" [--tolerance]", "")) == ["medseg diff --tolerance"]


# The example works

def test_python_example_of_the_first_page(tmp_path):
    block, = code_blocks((REPO / "README.md").read_text(encoding="utf-8"), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 5
    places = {f"MEDSEG_{name}": str(tmp_path / name.lower()) for name in ("RUNS", "CACHE")}
    done = subprocess.run([sys.executable, "-c", block], cwd=REPO, env=PLAIN | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dice +dice_low", done.stdout) and "difference_low" in done.stdout
