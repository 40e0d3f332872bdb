"""Every command of the command line with bad values, in a folder of its own, as an ordinary user.

`python tests/fuzz.py FOLDER KEY SECONDS SHARD/OF` writes a JSON line before and after each call; test_stress.py calls
it. Each call is a fork of one process that has imported the command line, which saves seconds of imports; what hangs is
killed with all that it started. First each parameter meets each class of bad value once, by one value of the class,
whatever time that takes, then by a second, until there are no more or the seconds have gone by."""
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import nibabel
import numpy as np
import typer
from PIL import Image

from conftest import PLAIN, REPO, Project, add_tiny, dicom, new_project
from medseg_nb.cli import app

LONGEST, MEMORY, FILES = 120, 8 * 2 ** 30, 2 ** 31  # seconds of a call that need not wait; bytes of memory; of a file


def commands(group=None, words=()) -> dict[tuple, list]:
    "Parameters of every command, by its words"
    group = group or typer.main.get_command(app)
    found = {}
    for name, c in group.commands.items():
        here = [p for p in c.params if p.name != "help"]
        found |= commands(c, (*words, name)) if hasattr(c, "commands") else {(*words, name): here}
    return found


# Bad values, by class

COLUMNS = "model,dataset,dice,jaccard,accuracy,sensitivity,specificity"

CLASSES = {
    "empty": ["", " "], "unknown": ["nosuch", "None", "true"], "long": ["x" * 5000, "n" * 300, "n" * 300 + "/x"],
    "deep": ["[" * 3000, "labels=[" + "[" * 500], "upwards": ["../x", "..\\x", "..", "../.."],
    "formula": ["=1+1", "@SUM(A1)", "-1+1", "=1+1.csv"], "template": ["%s%n", "{0}"], "setting": ["key=value", "a:b:c"],
    "control": ["\x1b[31mred", "a\nb", "a\tb", "a\nb.csv", "\u202egnp"], "undecodable": ["\udcff\udcfe", "\udcff.png"],
    "target": ["pixel:1", "pixel:-1,0", "class:99999999999", "class:" + "9" * 5000, "pixel:0," + "9" * 5000],
    "address": ["PACS@nowhere:99999", "http://[", "https://user:secret@host/x", "PACS@host:" + "9" * 5000],
    "negative": ["-1", "-1e999"], "zero": ["0", "00"], "fraction": ["0.5", "1e-30"],
    "infinite": ["1e999", "nan", "inf"],
    "large": ["9" * 30, "1e30", "999999999h", "9" * 400 + "h", "9" * 5000],
    "spelling": ["1_0", "0x10", "60s", "\u0663", "\uff11h"], "list": ["1,1,1,1,1", "1e30,1"],
    "folder": ["/", ".", "/..", "./", "//", "~", "full"], "device": ["device", "endless"], "pipe": ["pipe", "socket"],
    "kernel": ["/proc/self/mem", "/proc/1/environ", "/sys/kernel/x", "/dev/nosuch/x"],
    "link": ["linked", "linked/x", "dangling", "loop", "loop/x"], "locked": ["locked", "locked/x"],
    "wall": ["wall", "wall/x"], "artefact": ["wide", "none", "many", "outside", "nest"]}


def bad_volumes(place: Path) -> None:
    "NRRD, MetaImage and NIfTI whose headers ask for too much, or for themselves"
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 6\nencoding: raw\n"
    for name, extra in dict(lines="line skip: 999999999", back="line skip: -7", bytes="byte skip: 99999999999",
                            steps="spacings: 1e30 1e-30 1", huge="sizes: 99999 99999 99999").items():
        (place / f"{name}.nrrd").write_bytes(f"{head}{extra}\n\n".encode() + bytes(120))
    (place / "self.mhd").write_text("ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\n"
                                    "ElementDataFile = self.mhd\n")
    for name, step in (("large", 1e30), ("small", 1e-30), ("volume", 1)):
        volume = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([step, 1, 1, 1]))
        nibabel.save(volume, place / f"{name}.nii.gz")


HEADERS = {
    "date": dict(StudyDate="00000000"), "birth": dict(PatientBirthDate="unknown"), "time": dict(StudyTime="99:99"),
    "sex": dict(PatientSex="Q"), "charset": dict(SpecificCharacterSet="UTF-8"), "class": dict(SOPClassUID="1.2.3"),
    "slope": dict(RescaleSlope=0), "place": dict(ImagePositionPatient=[1, 2]),
    "turn": dict(ImageOrientationPatient=[0] * 6), "name": dict(PatientName="a\nerror: b\x1b[31m")}


def bad_pictures(place: Path) -> None:
    "Photographs where label maps are wanted, arrays that hold code, and DICOM with odd headers"
    grey = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(grey).save(place / "photograph.png")
    Image.fromarray(np.dstack([grey] * 3)).save(place / "colour.png")
    np.save(place / "bare.npy", np.zeros((4, 5, 6), np.int16))
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    (place / "object.npy").write_bytes(b"\x93NUMPY\x01\0v\0" + head + b" " * 60 + b"\n")
    for name, tags in HEADERS.items():
        (place / f"{name}.dcm").write_bytes(dicom(np.ones((8, 8)), **tags))


def bad_files(place: Path) -> None:
    "Files that hang, exhaust or mislead a reader"
    place.mkdir()
    bad_volumes(place); bad_pictures(place)
    (place / "empty.csv").write_bytes(b"")
    (place / "zeros.csv").write_bytes(bytes(10 ** 6))
    (place / "binary.csv").write_bytes(bytes(range(256)) * 9)
    (place / "formula.csv").write_text(f"{COLUMNS}\n=1+1,@A,0.8,0.67,,,\n")
    (place / "deep.json").write_text("[" * 10 ** 6)
    odd = json.dumps(dict(labels={"a": {"b": []}}, channel_names=7))
    for name, text in (("nested", "[" * 10 ** 6), ("labels", odd)):
        (place / name).mkdir(); (place / name / "dataset.json").write_text(text); (place / name).chmod(0o555)
    place.chmod(0o555)  # no call replaces what a later one is to read


def spoil(project: Project) -> None:
    "Put into a project what must not be replaced, read or followed; some of it only root can make"
    root = project.root
    (root / "wall").write_text("a file"); (root / "full").mkdir(); (root / "full" / "kept").write_text("kept")
    (root / "locked").mkdir(); (root / "locked" / "x").write_text("kept"); (root / "locked").chmod(0)
    for name, to in (("linked", "full"), ("dangling", "nowhere"), ("loop", "loop")): (root / name).symlink_to(to)
    os.mkfifo(root / "pipe")
    for name, minor in (("device", 3), ("endless", 5)):
        try: os.mknod(root / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor)); (root / name).chmod(0o666)
        except PermissionError: (root / name).symlink_to("/dev/zero" if name == "endless" else "/dev/full")
    with contextlib.chdir(root): socket.socket(socket.AF_UNIX).bind("socket")


def artefacts(project: Project, exported: Path) -> None:
    "Artefacts whose cards ask for too much"
    changes = dict(wide=dict(shape=[10 ** 5, 10 ** 5]), none=dict(shape=[0, 0]), many=dict(classes=10 ** 12),
                   outside=dict(files={"../x": "0" * 64}))
    for name, change in changes.items():
        shutil.copytree(exported, project.root / name)
        told = json.loads((exported / "artefact.json").read_text())
        (project.root / name / "artefact.json").write_text(json.dumps(told | change))
    shutil.copytree(exported, project.root / "nest")
    (project.root / "nest" / "artefact.json").write_text("[" * 10 ** 6)


STUDY = ["--data", "phantom_skin", "--readers", "2", "--cases", "6", "--repeats", "1", "--out"]
DICOM = ["--allow", "CT", "--to", "PACS@127.0.0.1:104"]
BASE = {  # calls that are sound but for what is put in; {n} is new in each; what would take minutes is refused last
    "new": ["workspaces/{n}"], "study": ["tiny", "--dry-run"],
    "models list": [], "models card": ["nosuch"], "models examples": ["nosuch", "--out", "x"], "models verify": [],
    "models build": ["nosuch"],
    "paper": ["--dry-run"], "run": ["nosuch"], "status": [], "diff": [], "doctor": [], "data list": [],
    **{f"data {name}": ["tiny"] for name in ("show", "fetch", "verify", "croissant", "audit")},
    "data edit": ["nosuch", "--set", "modality=CT"], "data remove": ["nosuch"],
    "data add": ["sets/tiny", "--id", "fuzz{n}"], "train": ["--data", "tiny", "--model", "cnn"],
    "export": ["{key}", "--to", "nosuch", "--out", "exports/{n}"], "predict": ["{key}", "one.png", "--out", "masks"],
    "explain": ["{key}", "one.png", "--target", "class:x", "--out", "why"], "bench": ["nosuch"],
    "transfer": ["nosuch", "--data", "tiny"],
    "serve dicom": ["nosuch", *DICOM], "serve app": ["nosuch"], "evaluate": ["seg", "seg", "--out", "scores.csv"],
    "claims list": [], "claims audit": ["table.csv", "--out", "verdicts.csv"], "readers new": [*STUDY, "readers/{n}"],
    "readers analyse": ["design.csv", "--key", "key.csv", "--out", "results"], "serve readers": ["nosuch"],
    "readers export": ["nosuch", "--out", "results"]}
NOWHERE = ["--bind", "127.0.0.300"]  # no address: a server that finds nothing else wrong ends here
FURTHER = {  # calls that judge a parameter which the ones above are refused before
    ("explain", "method"): ["{key}", "one.png", "--target", "class:1", "--out", "why"],
    ("explain", "out"): ["{key}", "one.png", "--target", "class:1"], ("explain", "data"): ["{key}", "--shortcuts"],
    ("paper", "executor"): [], ("paper", "only"): [],
    ("paper", "jobs"): ["--only", "nosuch"], ("paper", "data"): ["--only", "nosuch"],
    **{("train", name): ["--missing"] for name in ("limit", "jobs", "profile")}, ("export", "out"): ["{key}"],
    ("export", "prune"): ["{key}", "--out", "exports/{n}"], ("data add", "settings"): [*BASE["data add"], "--yes"],
    ("serve app", "bind"): ["{key}"], ("serve app", "port"): ["{key}", *NOWHERE],
    ("serve dicom", "bind"): ["{key}", *DICOM],
    **{("serve dicom", name): ["{key}", *DICOM, *NOWHERE] for name in "port title quiet keep queue allow to".split()}}
SOUND = {("export", "prune"): {"0.5"}, ("serve dicom", "bind"): {"", "0", "00"}}  # what follows takes long, or listens
REFUSED = "folder kernel device pipe link locked wall artefact upwards".split()  # classes of where nothing is written


def with_value(base: list[str], parameter, params: list, value: str) -> list[str]:
    "A sound call with one parameter replaced or added"
    words, positional = list(base), [p for p in params if p.param_type_name == "argument"]
    if parameter in positional:
        where = [i for i, w in enumerate(words) if not any(v.startswith("--") for v in words[max(i - 1, 0):i + 1])]
        k = positional.index(parameter)
        if k < len(where): words[where[k]] = value
        else: words.append(value)
        return words
    flag = max(parameter.opts, key=len)
    if flag in words and not parameter.is_flag: words[words.index(flag) + 1] = value; return words
    return [*words, flag] if parameter.is_flag else [*words, flag, value]


def values(files: list[str]) -> dict[str, list[str]]:
    "Bad values by class; files by what reads them"
    kinds = {}
    for f in files: kinds.setdefault(f"file{Path(f).suffix}", []).append(f)
    return CLASSES | kinds


def variants(words: tuple, p, params: list, kind: str, found: list[str], key: str) -> list[list[tuple]]:
    "Calls of a command with one parameter replaced by each value of a class, and the further ones"
    name = " ".join(words)
    def formed(base: list[str], value: str) -> list[str]:
        n = random.Random(f"{words} {p.name} {value!a}").getrandbits(40)
        return [*words, *(w if w is value else w.format(n=n, key=key) for w in with_value(base, p, params, value))]
    further = FURTHER.get((name, p.name)) if (name, p.name) != ("export", "out") or kind in REFUSED else None
    rest = [v for v in found if v not in SOUND.get((name, p.name), ())] if further is not None else []
    return [[((*words, p.name, kind), formed(BASE[name], v)) for v in found],
            [((*words, p.name, f"{kind}, further"), formed(further, v)) for v in rest]]


def calls(key: str, files: list[str]) -> list[tuple[tuple, list[str]]]:
    "All calls, each with its parameter and the class of its value; the same in each run"
    draws, by_class = random.Random(5), []
    for words, params in commands().items():
        for p in params:
            classes = {"flag": ["--flag"]} if getattr(p, "is_flag", False) else values(files)
            for kind, found in classes.items():
                by_class += variants(words, p, params, kind, draws.sample(found, len(found)), key)
    bare = [((), w) for w in (["nosuch"], [""], ["--nosuch"], ["data"], ["data", ""], ["\udcff"])]
    rounds = [[c for c in some if c] for some in zip_longest(*by_class)]
    return bare + [c for some in rounds for c in draws.sample(some, len(some))]


def special(root: Path) -> dict:
    "What lies at each of the places that must stay as they are"
    names = "device endless pipe socket linked dangling loop locked wall full".split()
    kinds = {p: stat.S_IFMT(os.lstat(root / p).st_mode) for p in names}
    return kinds | dict(kept=(root / "full" / "kept").read_text())


PLACES = (".", "data_manifests", "exports", "full", "readers", "runs", "tmp")  # folders in which calls make something


def tidy(root: Path, before: dict[str, set]) -> None:
    "Remove what a call has made, so that the next one finds what the first one found"
    for place, kept in before.items():
        for name in set(os.listdir(root / place)) - kept:
            p = root / place / name
            shutil.rmtree(p, ignore_errors=True) if p.is_dir() and not p.is_symlink() else p.unlink(missing_ok=True)


def fault_of(code: int, out: str, err: str) -> str:  # empty where it is as it should be
    "What is wrong with an answer"
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    if "Traceback" in err or "Traceback" in out: return "traceback"
    if code not in (0, 1, 2, 3, 4): return f"exit code {code}"
    if code in (2, 4) and len(lines) != 1: return f"{len(lines)} lines of error"
    if code in (2, 4) and "; " not in lines[0]: return "an error without a remedy"
    if any(c in err for c in "\x1b\u202e"): return "control character in an error"
    return ""


def call_and_end(project: Project, words: list[str], reply, raw) -> None:
    "In a fork: make a call, write code, output and errors as JSON, and end; what goes past Python is kept in `raw`"
    os.setsid()
    signal.alarm(3600)  # where the parent is killed
    for fd in (1, 2): os.dup2(raw.fileno(), fd)
    try: done = project.call(*words); found = [done.returncode, done.stdout, done.stderr]
    except BaseException as e: found = [None, "", f"raises {type(e).__name__}: {e}"]
    reply.write(json.dumps(found).encode()); reply.flush()
    os._exit(0)


def starved(pid: int) -> float:
    "Seconds for which a process was ready and other processes ran, on Linux"
    delays = [0]
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError): delays.append(int(path.read_text().split()[1]))
    return max(delays) / 1e9


def wait(pid: int, longest: float) -> tuple[bool, int, float]:  # whether it hangs; status; processor seconds
    "Wait for a fork, and end all that it started"
    end = time.monotonic() + longest
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() > end and time.monotonic() > end + starved(pid): break
        time.sleep(.005)
    hangs = not ended[0]
    with contextlib.suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
    if hangs: ended = os.wait4(pid, 0)
    return hangs, ended[1], round(ended[2].ru_utime + ended[2].ru_stime, 2)


def fuzz_call(project: Project, words: list[str], longest: float = LONGEST) -> dict:
    "One call in a fork, and what is wrong with it"
    with tempfile.TemporaryFile() as reply, tempfile.TemporaryFile() as raw:
        start, pid = time.monotonic(), os.fork()
        if not pid: call_and_end(project, words, reply, raw)
        hangs, status, spent = wait(pid, longest)
        reply.seek(0); raw.seek(0)
        text, past = reply.read(), raw.read().decode(errors="replace")
    code, out, err = json.loads(text) if text else (None, "", f"ends by status {status}")
    fault = f"hangs for {longest:g} s" if hangs else fault_of(code, out + past, err)
    return dict(words=words, code=code, seconds=round(time.monotonic() - start, 2), processor=spent, fault=fault,
                told=(past + err)[-4000:] if fault else "")


def bad_names(root: Path) -> list[str]: return sorted(str(p.relative_to(root)) for p in (root / "bad").iterdir())


def prepare(root: Path) -> Project:
    "A project with a data set, a run, an artefact, label maps, pictures and tables"
    project = new_project(root)
    tiny = add_tiny(project)
    done = project.call("train", "--data", "tiny", "--model", "cnn")
    assert done.returncode == 0, done.stderr
    project.key = done.stdout.split()[-1]
    done = project.call("export", project.key, "--out", "artefact")
    assert done.returncode == 0, done.stderr
    (root / "one.png").write_bytes((tiny.data / "images" / "p0.png").read_bytes())
    (root / "seg").mkdir()
    squares = np.kron(np.eye(3, dtype=np.uint8), np.ones((6, 6), np.uint8))
    for k in range(2): Image.fromarray(squares).save(root / "seg" / f"m{k}.png")
    (root / "table.csv").write_text(f"{COLUMNS}\nA,B,0.8,0.667,,,\n")
    done = project.call("readers", "new", *STUDY, "study")
    assert done.returncode == 0, done.stderr
    for name in ("design.csv", "key.csv"): (root / name).write_bytes((root / "study" / name).read_bytes())
    return project


def start_calls(project: Project, root: Path, seconds: float, shard: str, log: Path) -> subprocess.Popen:
    "Spoil a copy of a project, and begin calls with it as an ordinary user"
    copy = project.copy(root)
    artefacts(copy, root / "artefact"); spoil(copy); bad_files(root / "bad")
    for name in ("tmp", "exports", "readers"): (root / name).mkdir()
    words = ordinary([sys.executable, "-B", __file__, str(root), project.key, str(seconds), shard], root)
    env = PLAIN | dict(PYTHONPATH=os.pathsep.join([str(REPO), str(REPO / "tests")]))
    with open(log, "wb") as out:
        return subprocess.Popen(words, stdout=out, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env)


def ordinary(words: list[str], root: Path) -> list[str]:
    "The same command as a user who owns the folder alone and may read the rest, where this process is root"
    if os.geteuid() or not shutil.which("setpriv"): return words
    for p in [root, *root.rglob("*")]: os.lchown(p, 65534, 65534)
    may = "-all,+dac_read_search"  # the interpreter may lie in root's home
    limits = [f"--{kind}={may}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *limits, *words]


HEAVY = ("accelerate", "fastapi", "matplotlib.pyplot", "onnxruntime", "torch._dynamo", "uvicorn")  # within functions


def import_all() -> None:
    "Import what the commands import, so that no fork does"
    import importlib
    import pkgutil
    import medseg_nb
    for m in pkgutil.walk_packages(medseg_nb.__path__, "medseg_nb."):
        with contextlib.suppress(ImportError): importlib.import_module(m.name)
    for name in HEAVY: importlib.import_module(name)
    gc.collect(); gc.freeze()  # or each fork may go through all of it


def confine(root: Path) -> None:
    "Bound what a call can take, and keep temporary files within the folder"
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tempfile.tempdir = str(root / "tmp")
    os.chdir(root)


def main(root: Path, key: str, seconds: float, shard: str) -> None:
    assert os.geteuid(), "the calls are an ordinary user's"
    confine(root)
    own = {name: str(root / "tmp") for name in ("TMPDIR", "MPLCONFIGDIR", "IPYTHONDIR")}
    project = Project(root, dict(MEDSEG_DATA="sets", HOME=str(root)) | own)
    os.environ |= project.environment(); import_all()
    before, end, (mine, of) = special(root), time.monotonic() + seconds, map(int, shard.split("/"))
    names = {place: set(os.listdir(root / place)) for place in PLACES}
    todo = calls(key, bad_names(root))
    needed = max({what: k for k, (what, _) in reversed(list(enumerate(todo)))}.values())
    for k, (what, words) in list(enumerate(todo))[mine::of]:
        if k > needed and time.monotonic() > end: break
        print(json.dumps(dict(begins=words)), flush=True)
        told = fuzz_call(project, words) | dict(what=what)
        if special(root) != before: told["fault"] = told["fault"] or "replaced what it must not"
        tidy(root, names)
        print(json.dumps(told), flush=True)


if __name__ == "__main__": main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4])
