"A small study of three sections, small image pairs, and the real command line."
import contextlib
import csv
import functools
import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from medseg_nb.cli import main
from medseg_nb.paper.build import set_missing_documents

REPO = Path(__file__).resolve().parents[1]
COMMAND = shutil.which("medseg", path=str(Path(sys.executable).parent))
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("MEDSEG_")}
if PLAIN.pop("PYTHONDONTWRITEBYTECODE", None):  # each of a hundred processes would compile pandas and torch anew
    PLAIN["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "medseg_nb-pycache")


def needs(program: str, of: str = "", path: str = "") -> str:
    """Path of an outside program (or of a file that belongs to one); without it the test is skipped, or fails where
    MEDSEG_REQUIRE names the program"""
    found = (path if path and Path(path).exists()
             else shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])))
    if found: return found
    if (of or program).lower() in os.environ.get("MEDSEG_REQUIRE", "").lower().split(","):
        pytest.fail(f"{program} is not installed, and MEDSEG_REQUIRE asks for {of or program}")
    pytest.skip(f"{program} is not installed")


LONGEST = ["test_own_study.py"], ["test_study.py", "test_risk.py"]  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The longest begin the two halves that two workers take first, so that neither is left with one of them at the end"
    first, second = ([i for name in names for i in items if i.path.name == name] for names in LONGEST)
    rest = [i for i in items if i.path.name not in sum(LONGEST, [])]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *rest[:middle], *second, *rest[middle:]]


def stored_runs(reports: Path) -> dict[str, zipfile.Path]:
    "Runs that are committed with the reports of a profile, by key; no file stays open"
    runs = {}
    for path in sorted((reports / "runs").glob("*.zip.xz")):  # of many runs each
        runs |= {p.name: p for p in zipfile.Path(io.BytesIO(lzma.decompress(path.read_bytes()))).iterdir()}
    for path in sorted((reports / "runs").glob("*.zip")):  # written later, so that they count
        runs[path.stem] = zipfile.Path(io.BytesIO(path.read_bytes()))
    return runs


def find_reports(profile: str) -> Path:
    "Reports of a profile; documents that are not committed are set from the committed results"
    name = f"medseg_nb-{REPO.parent.name}-{REPO.name}-{profile}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name): set_missing_documents(profile)  # of several workers
    return REPO / "reports" / profile


@functools.lru_cache(maxsize=4)
def read_text_table(path: Path) -> pd.DataFrame: return read_table(path, dtype=str, keep_default_na=False)


@functools.lru_cache(maxsize=4)
def unpack_text(packed: bytes) -> str:
    "CSV of a packed table, or of one that was packed with its archive, by column"
    mark, _, text = (packed if packed.startswith(b"# ") else lzma.decompress(packed)).decode().partition("\n")
    if mark != "# a table by column": return f"{mark}\n{text}" if text else mark
    columns = [c.split("\n") for c in text.split("\x1e")]
    if '"' in text or "," in text: return pd.DataFrame({name: cells for name, *cells in columns}).to_csv(index=False)
    return "".join(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def read_table(path, **options) -> pd.DataFrame:
    "A table in a folder or an archive; of a pointer the rows of a run that a section's table holds"
    if path.suffix != ".xz":
        with path.open("rb") as file: return pd.read_csv(file, **options)
    text = unpack_text(path.read_bytes())
    if text.startswith("# rows of a run "):
        pointer, _, own = text.partition(": ")[2].partition("\n")
        pointer = json.loads(pointer)
        table = read_text_table(Path(os.environ.get("MEDSEG_REPORTS", REPO / "reports")) / pointer["table"])
        columns = dict(table[table.run == pointer["run"]].items())
        columns |= {name: cells for name, *cells in (c.split("\n") for c in own.split("\x1e"))}
        text = pd.DataFrame({c: [*columns[c]] for c in pointer["columns"]}).to_csv(index=False)
    return pd.read_csv(io.StringIO(text), **options)


def cell(source: str, tag: str | None = None) -> dict:
    "A notebook cell; text that begins with # and a blank is Markdown"
    common = dict(id=hashlib.sha256(source.encode()).hexdigest()[:8],
                  metadata=dict(tags=[tag]) if tag else {}, source=source.splitlines(keepends=True))
    if source.startswith(("# ", "## ")): return dict(cell_type="markdown", **common)
    return dict(cell_type="code", execution_count=None, outputs=[], **common)


def write_notebook(path: Path, cells: list[dict]) -> Path:
    "A source notebook in nbdev's normal form"
    kernel = dict(display_name="python3", language="python", name="python3")
    book = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


IMPORTS = ("import json\nimport time\n\nimport matplotlib.pyplot as plt\nimport pandas as pd\n\nfrom "
           "medseg_nb.kit.core import folder, rng\nfrom medseg_nb.kit.report import Estimate, Report")
FIRST = """#| study
report = Report("a", profile)  # a comment of section a
values = rng(seed, "a").normal(size=9).round(3)
doubled = 2 * values
report.cases(pd.DataFrame(dict(case=range(9), patient=range(9), value=doubled)))
report.numbers({"value.mean": Estimate(doubled.mean(), n=9)})
time.sleep(.2)
fig, ax = plt.subplots()
ax.plot(doubled)
report.figure("curve", fig, "Values of the fixture.")
report.table("values", pd.DataFrame(dict(row=range(9), value=doubled)), "Values of the fixture.", by=["row"])"""
LATER = """#| study
report = Report("{me}", profile)
before = json.loads((folder("reports") / profile / "{before}" / "results.json").read_text())["numbers"]["value.mean"]["value"]
time.sleep(.2)
report.numbers({{"value.mean": before + {step}}})"""


def section(name: str, study: str) -> list[dict]:
    "Cells of a section of the fixture study"
    return [cell(f"#| default_exp study.{name}"), cell(f"# Section {name}\n\n> What does section {name} say?"),
            cell('profile = "smoke"\nseed = 1', "parameters"), cell(IMPORTS), cell(study),
            cell(f"## Article\n\nSection {name} has a mean of {{value.mean}}."),
            cell(f"## Findings\n\nThe mean of section {name} is {{value.mean}}.")]


@dataclass
class Project:
    "A project's root, and the command line in it"
    root: Path
    env: dict = field(default_factory=dict)

    @property
    def reports(self) -> Path: return self.root / "reports"
    @property
    def runs(self) -> Path: return self.root / "runs"

    def notebook(self, name: str) -> Path: return next((self.root / "nbs" / "study").glob(f"[0-9][0-9]_{name}.ipynb"))

    def environment(self) -> dict:
        return PLAIN | dict(MEDSEG_ROOT=str(self.root), MEDSEG_RUNS="runs", MEDSEG_CACHE="cache") | self.env

    def start(self, *words: str, log: io.TextIOBase | None = None, **env: str) -> subprocess.Popen:
        "The command in a process group of its own; its messages go to pipes, or to a log"
        return subprocess.Popen([COMMAND, *map(str, words)],
                                env=self.environment() | env, cwd=self.root, stdin=subprocess.DEVNULL,
                                stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE,
                                text=True, encoding="utf-8", start_new_session=True)

    def medseg(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        "The command, with exit code, standard output and standard error"
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @contextlib.contextmanager
    def inside(self):
        """This process as if it had been started in the project: its environment and working folder, and nothing kept
        from elsewhere"""
        def forget():
            for kept in [v for n, m in list(sys.modules.items())
                         if n.startswith(("medseg_nb", "own.")) for v in vars(m).values() if hasattr(v, "cache_clear")]:
                kept.cache_clear()
        with patch.dict(os.environ, self.environment(), clear=True), contextlib.chdir(self.root):
            forget()
            yield
        forget()

    def call(self, *words: str) -> subprocess.CompletedProcess:
        "The same entry point within this process, which saves seconds of imports"
        out, err, code = io.StringIO(), io.StringIO(), 0
        with self.inside(), patch.object(sys, "argv",
                                         ["medseg",
                                          *map(str, words)]), contextlib.redirect_stdout(
            out), contextlib.redirect_stderr(err):
            try: main()
            except SystemExit as e: code = e.code or 0
            except Exception: code = 1; traceback.print_exc()
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def edit(self, name: str, old: str, new: str) -> None:
        "Change a text of a notebook"
        path = self.notebook(name)
        text = path.read_text(encoding="utf-8")
        assert text.count(json.dumps(old)[1:-1]) == 1
        path.write_text(text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]), encoding="utf-8")

    def files(self, place: str = "reports") -> dict[str, bytes]:
        "Content of all files below a folder; unfinished ones have a name that begins with a dot"
        found = sorted(p for p in (self.root / place).rglob("*") if p.is_file())
        return {p.relative_to(self.root).as_posix(): p.read_bytes()
                for p in found if not any(x.startswith(".") for x in p.relative_to(self.root).parts)}

    def copy(self, root: Path) -> "Project":
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Project(root, dict(self.env))


def new_project(root: Path) -> Project:
    "A study of the sections a, b (reads a) and c (reads b)"
    nbs = root / "nbs"
    shutil.copytree(REPO / "nbs" / "paper", nbs / "paper")
    rows = [dict(section="a"), dict(section="b", upstream=["a"]), dict(section="c", upstream=["b"])]
    (nbs / "study").mkdir()
    (nbs / "study.yaml").write_text(yaml.safe_dump(dict(sections=rows)), encoding="utf-8")
    write_notebook(nbs / "study" / "10_a.ipynb", section("a", FIRST))
    write_notebook(nbs / "study" / "20_b.ipynb", section("b", LATER.format(me="b", before="a", step=1)))
    write_notebook(nbs / "study" / "30_c.ipynb", section("c", LATER.format(me="c", before="b", step=1)))
    plan = dict(settings=dict(size=16, width=2, batch=4, precision="fp32"),
                seconds=.02, throughput=dict(unet=200), runs={},
                search=dict(datasets=["phantom_skin"], trials=2, seconds=.02), volumes=dict(share=1, settings={}))
    (nbs / "plans.yaml").write_text(yaml.safe_dump(dict(smoke=plan, cpu=plan)), encoding="utf-8")
    shutil.copytree(REPO / "data_manifests" / "phantom_skin", root / "data_manifests" / "phantom_skin")
    return Project(root)


@pytest.fixture
def fresh(tmp_path) -> Project:
    "The fixture study, never executed"
    return new_project(tmp_path / "project")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    "A folder of all workers of a call"
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def twins(shared) -> list[Project]:
    "Two fixture studies after one undisturbed `medseg paper` each, made by the first worker; only to be read"
    places = [shared / "built" / name for name in ("first", "second")]
    with FileLock(shared / "built.lock"):
        if not (shared / "built").exists():
            for place in places: place.mkdir(parents=True)
            started = [(place, new_project(place).start("paper")) for place in places]
            for place, process in started:
                out, err = process.communicate(timeout=900)
                (place.parent / f"{place.name}.json").write_text(json.dumps([process.returncode, out, err]))
    found = [*map(Project, places)]
    for project in found:
        said = json.loads((project.root.parent / f"{project.root.name}.json").read_text())
        project.first = subprocess.CompletedProcess(["paper"], *said)
    return found


@pytest.fixture(scope="session")
def built(twins) -> Project: return twins[0]


@pytest.fixture
def project(built, tmp_path) -> Project:
    "A copy of the executed fixture study"
    return built.copy(tmp_path / "project")


class Clone(Project):
    "The real study in a folder of its own"
    def paper(self, sections, *words: str, jobs: int = 2) -> subprocess.Popen:
        return self.start("paper", "-j", str(jobs), *words, *(w for name in sections for w in ("--only", name)))


def clone(root: Path) -> Clone:
    for name in ("nbs", "data_manifests", "reports/peers", "workflow"): shutil.copytree(REPO / name, root / name)
    for name in ("README.md", "requirements.lock", "settings.ini"): shutil.copy(REPO / name, root / name)
    return Clone(root)


@dataclass
class Tiny:
    "A small data set in a project: 6 patients with one image each"
    project: Project
    data: Path       # its files
    manifest: Path   # dataset.yaml

    def declare(self, **changes) -> None:
        "Change keys of the manifest; None removes one"
        facts = yaml.safe_load(self.manifest.read_text(encoding="utf-8")) | changes
        self.manifest.write_text(yaml.safe_dump({k: v for k, v in facts.items() if v is not None}), encoding="utf-8")

    def table(self, change) -> None:
        "Pass each row of the table through `change`"
        with open(self.data / "table.csv", encoding="utf-8", newline="") as f:
            rows = [change(r) for r in csv.DictReader(f)]
        with open(self.data / "table.csv", "w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, rows[0]); writer.writeheader(); writer.writerows(rows)


TINY = dict(id="tiny", name="Tiny squares", modality="photograph",
            task="semantic", synthetic=True, licence=dict(name="Apache-2.0", status="verified"), access="generated",
            home="tests/conftest.py", citation="none",
            table="table.csv", case="case", patient="patient", image=dict(columns=["image"], channels=["grey"]),
            mask=dict(column="mask", kind="labels"),
            labels=dict(background=0, lesion=1), spacing="unknown", split=dict(folds=2, seed=0))


def add_tiny(project: Project) -> Tiny:
    "Add the data set `tiny` to a project"
    data, folder = project.root / "sets" / "tiny", project.root / "data_manifests" / "tiny"
    draws, rows = np.random.default_rng(0), ["case,patient,image,mask"]
    for place in (data / "images", data / "masks", folder): place.mkdir(parents=True)
    for k in range(6):
        mask = np.zeros((24, 20), np.uint8); mask[4 + k:12 + k, 6:14] = 1
        Image.fromarray(mask).save(data / "masks" / f"p{k}.png")
        Image.fromarray((100 * mask + draws.integers(0, 90, mask.shape)).astype(np.uint8)).save(
            data / "images" / f"p{k}.png")
        rows.append(f"c{k},p{k},images/p{k}.png,masks/p{k}.png")
    (data / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    project.env["MEDSEG_DATA"] = "sets"
    return Tiny(project, data, folder / "dataset.yaml")


@pytest.fixture
def tiny_data(fresh) -> Tiny: return add_tiny(fresh)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Project:
    "A project with one U-Net, trained for one step on skin phantoms; `key` names it"
    project = new_project(tmp_path_factory.mktemp("trained"))
    done = project.medseg("train", "--data", "phantom_skin", "--model", "unet")
    assert done.returncode == 0, done.stderr
    project.key = done.stdout.strip()
    return project


# Files that no library would write, or not so

def png(depth: int, kind: int, rows: bytes, size: tuple[int, int], *chunks) -> bytes:
    "A PNG of raw rows"
    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return (b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body))


def dicom(pixels: np.ndarray, syntax: str = "", encoded: bytes | None = None, without: str = "", **tags) -> bytes:
    """A DICOM file of one slice; with a transfer syntax compressed, by pydicom or by what is given as encoded; without
    some elements"""
    import pydicom
    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = pydicom.uid.CTImageStorage, "1.2.3.4", "1.2.3"
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.PixelSpacing, d.ImageOrientationPatient, d.ImagePositionPatient = [1.5, 2], [1, 0, 0, 0, 1, 0], [0, 0, 0]
    d.RescaleSlope, d.RescaleIntercept, d.PixelData = 1, -1024, pixels.astype(np.uint16).tobytes()
    for name, value in tags.items(): setattr(d, name, value)
    for name in without.split(): del d[name]
    if syntax and encoded is None: d.compress(syntax, generate_instance_uid=False)
    elif syntax:
        d.file_meta.TransferSyntaxUID, d.PixelData = syntax, pydicom.encaps.encapsulate(
            [encoded]); d["PixelData"].is_undefined_length = True
    out = io.BytesIO(); d.save_as(out, enforce_file_format=True)
    return out.getvalue()


def refused(done: subprocess.CompletedProcess, subject: str, fault: str, code: int = 2) -> bool:
    "Assert the one line in which the kit names file, fault and remedy, and its exit code"
    assert done.returncode == code, (done.returncode, done.stderr)
    line, = done.stderr.splitlines()
    head, _, remedy = line.rpartition("; ")
    assert head.startswith("error: ") and subject in head and fault in head and len(remedy) > 5, line
    assert not done.stdout
    return True
