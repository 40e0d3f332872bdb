"""Long tests, run by `make stress`: kills on real sections, and every command with bad values (readers and scores are
fuzzed in test_properties.py). Below 40 minutes: readers and scores 6, commands 9, kills 3, two projects 22."""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import fuzz
from conftest import Project, clone

pytestmark = pytest.mark.stress
SECTIONS = ("data", "metrics", "search", "statistics")  # of the smoke paper; `statistics` reads `benchmark`
ONCE = 660                   # seconds to bring these up to date
FUZZING, ENOUGH = 420, 540  # seconds after which bad calls end that are not needed, and all of them


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed at once")
def test_kill_the_smoke_paper_at_any_moment(tmp_path):
    "Ten kills, then one call; the results are those of a project in which two calls went on at once, none killed"
    killed, other, draws, kills = clone(tmp_path / "killed"), clone(tmp_path / "other"), random.Random(5), 0
    for _ in range(10):
        process = killed.paper(SECTIONS)
        try: process.communicate(timeout=draws.uniform(2, 18))
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); kills += 1
        process.communicate()
    assert kills >= 5
    for started in ([killed.paper(SECTIONS)], [other.paper(SECTIONS), other.paper(SECTIONS)]):
        ends = [p.communicate(timeout=ONCE) for p in started]
        assert [p.returncode for p in started] == [0] * len(started), ends
    mine, theirs = killed.files(), other.files()
    assert set(mine) == set(theirs) and [k for k in mine if mine[k] != theirs[k]] == []


POSIX = pytest.mark.skipif(os.name != "posix", reason="users, devices and forks are POSIX's")


@POSIX
def test_every_command_with_bad_values(tmp_path):
    "No traceback, one line an error, nothing hangs or is replaced; each parameter meets each class of bad value"
    project = fuzz.prepare(tmp_path / "whole")
    logs = [tmp_path / f"calls{k}.jsonl" for k in range(2)]
    end = time.monotonic() + ENOUGH
    started = [fuzz.start_calls(project, tmp_path / f"spoilt{k}", FUZZING, f"{k}/2", log) for k, log in enumerate(logs)]
    try: errs = [p.communicate(timeout=end - time.monotonic())[1].decode()[-2000:] for p in started]
    finally:
        for p in started: p.kill()
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    ends = [t for t in lines if "words" in t]
    assert [p.returncode for p in started] == [0, 0], errs
    assert not [t for t in ends if t["fault"]], json.dumps([t for t in ends if t["fault"]], indent=1)
    planned = {what for what, _ in fuzz.calls(project.key, fuzz.bad_names(tmp_path / "spoilt0"))}
    assert {tuple(t["what"]) for t in ends} == planned and len(planned) > 3000


PLANTED = {  # what a call does or answers, and the fault that is told
    "sound": (lambda: (2, "", "error: a: is wrong; mend it\n"), ""), "no line": (lambda: (4, "", ""), "0 lines"),
    "two lines": (lambda: (2, "", "error: a; b\n" * 2), "2 lines"),
    "no remedy": (lambda: (2, "", "error: a: is wrong\n"), "an error without a remedy"),
    "code": (lambda: (130, "", ""), "exit code 130"), "colour": (lambda: (0, "", "\x1b[31m"), "control"),
    "raises": (lambda: 1 / 0, "exit code None"), "ends": (lambda: os.kill(os.getpid(), 9), "exit code None"),
    "traceback of a worker": (lambda: (os.system(f"{sys.executable} -c 1/0"), (0, "", ""))[1], "traceback"),
    "hangs": (lambda: re.match("(a+)+$", "a" * 60 + "b"), "hangs for 1 s")}  # without a look at signals


@POSIX
@pytest.mark.parametrize("name", PLANTED)
def test_fuzzing_tells_a_planted_fault(tmp_path, name):
    act, fault = PLANTED[name]
    class Planted(Project):
        def call(self, *words): return subprocess.CompletedProcess(words, *act())
    found = fuzz.fuzz_call(Planted(tmp_path), ["status"], longest=1 if name == "hangs" else 60)["fault"]
    assert found.startswith(fault) and bool(found) == bool(fault)
