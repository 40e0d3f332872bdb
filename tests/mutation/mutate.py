"""Would a test fail if the code were wrong? Small changes are made to modules, one at a time, and the tests are asked.

    python tests/mutation/mutate.py [MODULE ...] [--number 45] [--seed 0] [--workers 2] [--survivors] [--named]

Heavy packages are imported once. Each mutant is tried in a fork of that process: the changed module takes the place of
the real one, modules that import it are forgotten, the cells of its notebook run as nbdev_test runs them, and where all
of them pass so do the files of `tests/` that concern the module.
"""
import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

HERE, REPO = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
import yaml

from mutation.operators import Mutant, choose_mutants, mutants_of

MODULES = ("surface_distances", "matching", "metrics", "intervals", "comparisons", "splits", "training", "loop",
           "inference")
ALGEBRA = "tests/test_properties.py::test_algebra"
# what concerns a module besides its notebook
TESTS = dict(surface_distances=[ALGEBRA], matching=[ALGEBRA], metrics=[ALGEBRA])
PRELOADED = ("accelerate", "pytest", "hypothesis", "scipy.stats", "scipy.spatial.distance", "scipy.optimize", "nibabel",
             "statsmodels.formula.api", "torch._dynamo", "sklearn.metrics", "conftest")
LEFT_OUT = {"_workers": "a trial replaces it, so that workers hold the mutant",
            "bootstrap_tasks": "it lists what is timed, and timings are no tests"}
BLIND = re.compile(r"subprocess\.|cpu_time|process_time")  # another process sees no mutant; a clock is not steady
NOT_RUN = re.compile(r"#\| (default_exp|study|cuda|eval: false)")
MEMORY = 48 * 2**30  # bytes of address space: enough for torch, and an end to what grows without one
STATE = REPO / "runs" / "mutation.jsonl"
RESULTS, REASONS, NAMED = HERE / "RESULTS.md", HERE / "reasons.yaml", HERE / "named.yaml"


@dataclass(frozen=True)
class Notebook:
    "Code cells of a module's notebook"
    cells: tuple[str, ...]

    @property
    def exported(self) -> list[int]: return [k for k, c in enumerate(self.cells) if c.startswith("#| export")]


def full_name(module: str) -> str:
    "Importable name of a module, by its last name alone; one of the library goes before a section of its name"
    path = min((REPO / "medseg_nb").rglob(f"{module}.py"), key=lambda p: p.parent.name == "study")
    return ".".join(path.relative_to(REPO).with_suffix("").parts)


def notebook(module: str) -> Notebook:
    places = [path for folder in ("library", "study")
              for path in (REPO / "nbs" / folder).rglob(f"[0-9][0-9]_{module}.ipynb")]
    path = places[0]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return Notebook(tuple(s for s in sources if not NOT_RUN.match(s) and not ("assert" in s and BLIND.search(s))))


def exported_cells(module: str) -> list[str]:
    book = notebook(module)
    return [book.cells[k] for k in book.exported]


# One mutant, in a process of its own

def forget_dependents(name: str) -> None:
    "Drop modules that import a module, directly or not: imported anew, they take what stands in its place"
    from medseg_nb.kit.keys import is_module, module_definitions
    kit = {**sys.modules}
    ours = [m for m in kit if m.startswith("medseg_nb.")
            and not m.endswith("_modidx") and not hasattr(kit[m], "__path__")]
    def imports(m):
        return {f"{a}.{b}" if is_module(a, b) else a for a, b in module_definitions(m).imports.values() if b}
    needs, dependents = {m: imports(m) for m in ours}, {name}
    while more := {m for m in ours if needs[m] & dependents} - dependents: dependents |= more
    for m in dependents:
        del sys.modules[m]
        package, _, short = m.rpartition(".")
        vars(sys.modules[package]).pop(short, None)


def run_cells(book: Notebook, cells: list[int], space: types.ModuleType) -> None:
    for k in cells:
        exec(compile(book.cells[k], f"cell {k}", "exec"), space.__dict__)
        if "_workers" in space.__dict__: space._workers = lambda: multiprocessing.get_context("fork")


def install(module: str, book: Notebook) -> None:
    "Put a module of a notebook's exported cells into the place of the real one"
    name = full_name(module)
    new = types.ModuleType(name)
    kept = ("__file__", "__package__", "__spec__", "__loader__")
    new.__dict__.update({k: getattr(sys.modules[name], k) for k in kept})
    forget_dependents(name)
    sys.modules[name] = new
    setattr(sys.modules[name.rpartition(".")[0]], module, new)
    run_cells(book, book.exported, new)


def verdict_of(module: str, book: Notebook) -> str:  # "survived", or what killed it
    "What the tests say of a module with these cells"
    import pytest
    try:
        install(module, book)
        sys.modules["__main__"] = types.ModuleType("__main__")
        run_cells(book, list(range(len(book.cells))), sys.modules["__main__"])
    except BaseException as e: return f"notebook ({type(e).__name__})"
    os.chdir(REPO)
    if module not in TESTS: return "survived"
    return "tests" if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *TESTS[module]]) else "survived"


def trial_process(pipe, module: str, cells: tuple[str, ...], seconds: int) -> None:
    "What a forked process does: try one mutant, with limits, where it can harm nothing"
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nothing:
        for stream in (1, 2): os.dup2(nothing.fileno(), stream)
        os.environ["MEDSEG_RUNS"] = f"{place}/runs"
        os.chdir(REPO / "nbs")
        pipe.send((verdict_of(module, Notebook(cells)), time.process_time()))
    os._exit(0)


class Trial:
    "One mutant that is being tried"
    def __init__(self, key: object, module: str, cells: tuple[str, ...], seconds: int):
        self.key, (self.pipe, theirs) = key, multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=trial_process, args=(theirs, module, cells, seconds))
        self.process.start(); theirs.close()
        self.end = time.monotonic() + 5 * seconds  # `seconds` are of a processor; this is for what only waits

    def result(self) -> tuple[str, float]:  # verdict, processor seconds
        "What came of it; a process that had to be stopped has killed its mutant"
        answer = None
        with contextlib.suppress(EOFError): answer = self.pipe.recv() if self.pipe.poll() else None
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(); self.pipe.close()
        stopped = self.process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return answer or ("time-out" if stopped else "crash", 0.)


def try_mutants(tasks: list[tuple], workers: int) -> Iterator[tuple[object, str, float]]:  # key, verdict, seconds
    "Verdict on each task (key, module, cells, seconds), as it ends; so many at a time"
    tasks, running = tasks[::-1], {}
    while tasks or running:
        while tasks and len(running) < workers: trial = Trial(*tasks.pop()); running[trial.pipe] = trial
        for pipe in wait(list(running), timeout=5) or [p for p, t in running.items() if time.monotonic() > t.end]:
            trial = running.pop(pipe)
            yield trial.key, *trial.result()


# Many mutants

def preload(modules: list[str]) -> None:
    "Import what takes seconds, once for all mutants; one thread each, as a fork needs it"
    os.environ |= dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MPLBACKEND="agg")
    import torch
    torch.set_num_threads(1)
    for name in (*PRELOADED, *map(full_name, modules)): importlib.import_module(name)


def fingerprint(module: str) -> str:
    "Of a module's notebook and of its tests: with other ones a stored verdict no longer counts"
    files = sorted({t.split("::")[0] for t in TESTS.get(module, ())})
    texts = [*notebook(module).cells, *((REPO / f).read_text(encoding="utf-8") for f in files)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def load_verdicts() -> dict[str, dict]:
    lines = STATE.read_text(encoding="utf-8").splitlines() if STATE.is_file() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def with_mutant(book: Notebook, mutant: Mutant) -> tuple[str, ...]:
    at = book.exported[mutant.cell]
    return (*book.cells[:at], f"#| export\n{mutant.source}", *book.cells[at+1:])


def seconds_without_mutant(module: str) -> float:
    "Processor time of the tests, all of which must pass"
    (_, verdict, seconds), = try_mutants([(module, module, notebook(module).cells, 600)], 1)
    if verdict != "survived": sys.exit(f"{module}: tests fail without any mutant: {verdict}; mend them first")
    return seconds


def choose(modules: list[str], number: int, seed: int) -> dict[str, list[Mutant]]:
    def of(module):
        everything = mutants_of(module, exported_cells(module))
        return [m for m in everything if m.function.split(".")[0] not in LEFT_OUT]
    return {m: choose_mutants(of(m), number, seed) for m in modules}


def run_missing(mutants: dict[str, list[Mutant]], workers: int, only_survivors: bool) -> dict[str, dict]:
    "Try mutants without a verdict of today's tests; what is done is kept, so an interrupted call goes on"
    before, prints = load_verdicts(), {m: fingerprint(m) for m in mutants}
    def wanted(m):
        if m.id not in before: return True
        is_old = before[m.id]["print"] != prints[m.module]
        return is_old and not (only_survivors and before[m.id]["outcome"] != "survived")
    STATE.parent.mkdir(exist_ok=True)
    for module in mutants:
        todo = [m for m in mutants[module] if wanted(m)]
        if not todo: continue
        book, limit = notebook(module), int(15 + 3 * seconds_without_mutant(module))
        for m, verdict, seconds in try_mutants([(m, module, with_mutant(book, m), limit) for m in todo], workers):
            print(f"{module} {m.id} {verdict:24} {seconds:5.1f} s  {m.function}: {m.before}  ->  {m.after}", flush=True)
            row = dict(id=m.id, print=prints[module], outcome=verdict)
            with open(STATE, "a", encoding="utf-8") as f: f.write(json.dumps(row) + "\n")
    return load_verdicts()


# The table

HEAD = """# Mutants

Written by `{command}`. A mutant is one small change of a module; it is killed where a test fails.
Not mutated: {left_out}.

| module | mutants | killed by its notebook | by `tests/` | by time or a crash | survived | killed |
|---|---:|---:|---:|---:|---:|---:|
"""


def count_verdicts(mutants: list[Mutant], verdicts: dict[str, dict]) -> list[int]:
    "Mutants, killed by notebook, by tests, by time or a crash, survived"
    kinds = [verdicts[m.id]["outcome"].split()[0] for m in mutants]
    stopped = kinds.count("time-out") + kinds.count("crash")
    return [len(kinds), kinds.count("notebook"), kinds.count("tests"), stopped, kinds.count("survived")]


def table(mutants: dict[str, list[Mutant]], verdicts: dict[str, dict], command: str) -> str:
    "Mutants by module, and the list of those that live, as Markdown"
    counts = {module: count_verdicts(mutants[module], verdicts) for module in mutants}
    counts["**all**"] = [sum(column) for column in zip(*counts.values())]
    text = HEAD.format(command=command, left_out="; ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items()))
    for name, row in counts.items(): text += f"| {name} | {' | '.join(map(str, row))} | {1 - row[-1] / row[0]:.1%} |\n"
    text += "\n## Survivors\n\n| id | definition | before | after | why it lives |\n|---|---|---|---|---|\n"
    reasons = yaml.safe_load(REASONS.read_text(encoding="utf-8"))
    def code(line): return "`" + line.replace("|", "\\|") + "`"
    for m in (m for module in mutants for m in mutants[module] if verdicts[m.id]["outcome"] == "survived"):
        place = f"{m.module}.{m.function or '(top)'}"
        text += f"| {m.id} | {place} | {code(m.before)} | {code(m.after)} | {reasons.get(m.id, 'open')} |\n"
    return text


# Mutants that are written by hand

def named_mutants() -> list[tuple[str, str, tuple[str, ...] | None]]:  # name, module, cells; None: its text is gone
    "Mutants of `named.yaml`, whose text must stand once in the exported cells"
    rows = []
    for row in yaml.safe_load(NAMED.read_text(encoding="utf-8")):
        book, (old, new) = notebook(row["module"]), (row["before"], row["after"])
        places = [k for k in book.exported for _ in range(book.cells[k].count(old))]
        cells = tuple(c.replace(old, new) if k in places else c for k, c in enumerate(book.cells))
        rows.append((row["name"], row["module"], cells if len(places) == 1 else None))
    return rows


def try_named(modules: list[str], workers: int) -> None:
    "Print the verdict on each mutant that is written by hand"
    rows = [row for row in named_mutants() if not modules or row[1] in modules]
    preload(sorted({module for _, module, _ in rows}))
    for name, module, cells in rows:
        if cells is None: print(f"{module:12} {name}: its text does not stand there once; mend {NAMED.name}")
    tasks = [((module, name), module, cells, 300) for name, module, cells in rows if cells]
    for (module, name), verdict, _ in try_mutants(tasks, workers): print(f"{module:12} {name}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all, whose table is then written")
    parser.add_argument("--number", type=int, default=45, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--survivors", action="store_true", help="where tests were added: try again those that lived")
    parser.add_argument("--named", action="store_true", help="try the mutants of named.yaml instead")
    options = parser.parse_args()
    if options.named: return try_named(options.modules, options.workers)
    modules = options.modules or list(MODULES)
    preload(modules)
    mutants = choose(modules, options.number, options.seed)
    verdicts = run_missing(mutants, options.workers, options.survivors)
    command = f"python tests/mutation/mutate.py --number {options.number} --seed {options.seed}"
    text = table(mutants, verdicts, command)
    if options.modules: print(text)
    else: RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__": main()
