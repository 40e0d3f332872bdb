"Mutants are those named; the table is today's"
import re

import pytest
import yaml

from mutation import mutate
from mutation.operators import choose_mutants, mutants_of

TOY = '''#| export
import math
from functools import cache, wraps

LIMIT = .5

@cache
def share(part: int = 1, whole: int = 4) -> float:
    "A share of 2, at most"
    if part < 0 and whole: raise ValueError(f"{part + 1} is negative")
    return min(math.floor(part) / whole, LIMIT)

def head(values, key=None): return sorted(values, reverse=True)[1:3]

class Box:
    @property
    def size(self): return -1'''
EXPECTED = {  # by operator: a line after its change
    "comparison": "if part <= 0 and whole:", "boolean": "if part < 0 or whole:", "constant": "LIMIT = 0.375",
    "jump": "pass", "slice": "return sorted(values, reverse=True)[1:]",
    "arithmetic": "return min(math.floor(part) * whole, LIMIT)",
    "branch": "if not (part < 0 and whole):", "return": "return",
    "argument": "return sorted(values)[1:3]", "call": "return min(part / whole, LIMIT)",
    "decorator": "def size(self):", "unary": "return 1"}


@pytest.fixture(scope="module")
def toy(): return mutants_of("toy", [TOY])


@pytest.mark.parametrize("operator", EXPECTED)
def test_operator_makes_its_change(toy, operator):
    assert EXPECTED[operator] in {m.after for m in toy if m.operator == operator}


def test_what_changes_no_result_is_left_alone(toy):
    kept = ("import math", "@cache", "def share(part: int", '"A share of 2, at most"', "-> float", "is negative")
    names = [line for m in toy for line in (m.before, m.after) if "import" in line or "cache" in line]
    assert names == [] and all(word in TOY for word in kept)
    assert all("'A share of 2, at most'" in m.source or '"A share of 2, at most"' in m.source for m in toy)
    assert all("part + 1" in m.source for m in toy if m.after != "pass")


def test_mutants_are_distinct_programs_that_differ_in_one_line(toy):
    assert len({m.id for m in toy}) == len({m.source for m in toy}) == len(toy) > 25
    for m in toy: compile(m.source, m.id, "exec")


def test_asserts_kill_the_mutants_of_the_toy(toy):
    def lives(source):
        space = {}
        try:
            exec(source, space)
            share = space["share"]
            assert share() == .25 and share(3, 4) == .5 and share(1.5, 4) == .25 and share(0, 4) == 0
            with pytest.raises(ValueError, match="-1 is negative"): share(-2)
            assert space["head"]([1, 4, 3, 2]) == [3, 2] and space["Box"]().size == -1
        except BaseException: return False
        return True
    assert lives(TOY)
    assert {m.after for m in toy if lives(m.source)} == {"if part < 0:"}, "nobody asked for a share of nothing"


def test_choice_is_that_of_the_seed_and_takes_each_operator(toy):
    some = choose_mutants(toy, 14, 0)
    assert some == choose_mutants(toy[::-1], 14, 0) != choose_mutants(toy, 14, 1) and len(some) == 14
    assert len({m.operator for m in some}) == len({m.operator for m in toy})
    changed = {m.id for m in mutants_of("toy", [TOY.replace("[1:3]", "[2:4]")])}
    assert {m.id for m in toy if m.function != "head"} <= changed


# The committed table, and the mutants that are written by hand

def test_table_is_of_the_present_modules_and_explains_each_survivor():
    text = mutate.RESULTS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text, re.M)
    assert [name for name, *_ in rows] == list(mutate.MODULES) and all(mutate.exported_cells(m) for m in mutate.MODULES)
    total, *_, survivors = (sum(map(int, column)) for column in list(zip(*rows))[1:])
    assert total >= 300 and survivors <= .1 * total
    listed = re.findall(r"^\| ([0-9a-f]{8}) \|.*\| ([^|]+) \|$", text, re.M)
    assert len(listed) == survivors and [i for i, reason in listed if reason == "open"] == []


def test_mutants_written_by_hand_apply():
    rows = yaml.safe_load(mutate.NAMED.read_text(encoding="utf-8"))
    gone = [name for name, _, cells in mutate.named_mutants() if not cells]
    assert len(rows) >= 20 and gone == []
