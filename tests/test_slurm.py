"""A real SLURM of one node, started here and stopped at the end, runs sections of the smoke study: four jobs at once, a
killed job is retried, and the results are those of the sequential run. MEDSEG_SLURM_SECTIONS=all takes the whole
paper."""
import contextlib
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import Clone, clone, needs
from medseg_nb.training.jobs import START_MINUTES

pytestmark = [pytest.mark.stress, pytest.mark.skipif(sys.platform != "linux", reason="SLURM is Linux's")]
SECTIONS = ["metrics", "instances", "fusion"]  # no run, three runs, five runs
JOBS, LONGEST = 4, 1500                        # jobs at once; seconds that these sections may take

CONFIG = """ClusterName=medseg
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={place}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
MinJobAge=3600
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=65536 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in found: s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in found]


class Slurm:
    "One node that claims four processors, and its daemons"
    def __init__(self, place):
        self.place, self.daemons = place, []
        self.programs = {name: needs(name, "slurm") for name in ("munged", "slurmctld", "slurmd", "sbatch")}
        for name in ("state", "spool", "bin"): (place / name).mkdir(parents=True)
        self.env = dict(SLURM_CONF=str(place / "slurm.conf"), PATH=f"{place / 'bin'}:{os.environ['PATH']}")
        step = place / "bin" / "srun"  # Snakemake's jobs forget SLURM's variables, and this cluster is not in /etc
        step.write_text(f"#!/bin/sh\nSLURM_CONF={place}/slurm.conf exec {needs('srun', 'slurm')} \"$@\"\n")
        step.chmod(0o755)
        key = place / "munge.key"
        key.write_bytes(os.urandom(1024)); key.chmod(0o400)
        (place / "slurm.conf").write_text(CONFIG.format(
            place=place, host=socket.gethostname().partition(".")[0], user=getpass.getuser(), cpus=JOBS,
            ports=free_ports(2)))

    def daemon(self, name: str, *words: str) -> None:
        with open(self.place / f"{name}.log", "wb") as log:
            self.daemons.append(subprocess.Popen([self.programs[name], *words], env=os.environ | self.env, stdout=log,
                                                 stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))

    def call(self, *words: str) -> str:
        return subprocess.run(words, env=os.environ | self.env, capture_output=True, text=True).stdout

    def queue(self, state: str = "all") -> list[dict]:
        "Jobs, with what Snakemake notes of each"
        lines = self.call("squeue", "--noheader", f"--states={state}", "--format=%i|%T|%k").splitlines()
        return [dict(zip(("id", "state", "note"), line.split("|"))) for line in lines]

    def processes(self, job: str) -> list[int]:
        "Of a job on this node"
        lines = self.call("scontrol", "listpids", job).splitlines()[1:]
        return [int(line.split()[0]) for line in lines if int(line.split()[0]) > 0]

    def wait(self, ready, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end and all(d.poll() is None for d in self.daemons), self.messages()
            time.sleep(.2)

    def messages(self) -> str: return "\n".join(p.read_text(errors="replace")[-2000:] for p in self.place.glob("*.log"))

    def __enter__(self):
        at = str(self.place / "munge")
        self.daemon("munged", "--foreground", "--force", f"--key-file={at}.key", f"--socket={at}.socket",
                    f"--pid-file={at}.pid", f"--log-file={at}d.log", f"--seed-file={at}.seed")
        self.wait(lambda: (self.place / "munge.socket").exists())
        self.daemon("slurmctld", "-D", "-c"); self.daemon("slurmd", "-D")
        self.wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%t"))
        return self

    def __exit__(self, *error):
        self.call("scancel", f"--user={getpass.getuser()}")
        with contextlib.suppress(AssertionError): self.wait(lambda: not self.queue("PENDING,RUNNING,COMPLETING"))
        for d in reversed(self.daemons): d.terminate(); d.wait(30)


@pytest.fixture
def slurm(tmp_path):
    with Slurm(tmp_path / "slurm") as found: yield found


def sections() -> list[str]:
    wanted = os.environ.get("MEDSEG_SLURM_SECTIONS", "")
    return [] if wanted == "all" else wanted.split(",") if wanted else SECTIONS


def is_running(job: dict, kind: str) -> bool: return job["state"] == "RUNNING" and kind in job["note"]


def disturb(slurm: Slurm, process: subprocess.Popen) -> tuple[int, dict[str, str]]:
    """Cancel the first training that runs for ten seconds, and kill a section's processes; most jobs at once, and the
    jobs that were ended by how"""
    most, since, ended, end = 0, {}, {}, time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < end:
        jobs = slurm.queue("RUNNING")
        most = max(most, len(jobs))
        for job in jobs:
            age = time.monotonic() - since.setdefault(job["id"], time.monotonic())
            if "scancel" not in ended and age > 10 and is_running(job, "train"):
                slurm.call("scancel", job["id"]); ended["scancel"] = job["id"]
            elif "kill" not in ended and age > 10 and is_running(job, "fusion"):
                for pid in slurm.processes(job["id"]):
                    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
                ended["kill"] = job["id"]
        time.sleep(.5)
    return most, ended


def prepare(root, slurm: Slurm) -> Clone:
    "The study with the profile as it is, and what this cluster asks for: it keeps no accounts"
    project = clone(root)
    project.env = slurm.env
    with open(root / "workflow" / "profiles" / "slurm" / "config.yaml", "a") as f:
        f.write("slurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 3\n"
                "seconds-between-status-checks: 3\n")
    return project


def measured_minutes(project: Clone) -> float:
    "Processor minutes of the trainings and sections of a project, without the start of jobs"
    records = [(p, "train_cpu_seconds") for p in project.runs.glob("*/measured.json")]
    costs = [json.loads(p.read_text())[name] for p, name in records if p.parent.name != "measured"]
    costs += [json.loads(p.read_text())["values"]["cpu_seconds"] for p in project.runs.glob("measured/*.json")]
    return sum(costs) / 60


def test_slurm_runs_the_smoke_study_as_one_process_does(slurm, tmp_path):
    project, alone, start = prepare(tmp_path / "cluster", slurm), clone(tmp_path / "alone"), time.monotonic()
    with open(tmp_path / "snakemake.log", "w+") as log:
        process = project.start("paper", "-j", str(JOBS), "--executor", "slurm",
                                *(w for name in sections() for w in ("--only", name)), log=log)
        try: most, ended = disturb(slurm, process)
        finally:
            with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        log.seek(0); messages = log.read()
    assert process.returncode == 0, messages[-6000:]
    states = {j["id"]: j["state"] for j in slurm.queue()}
    print(f"{len(states)} jobs, {most} at once, {time.monotonic() - start:.0f} s; ended on purpose: "
          f"{ {how: (job, states[job]) for how, job in ended.items()} }")
    assert most == JOBS and states[ended["scancel"]] == "CANCELLED" and states[ended["kill"]] == "FAILED"
    assert sorted(states.values()).count("COMPLETED") == len(states) - 2
    assert messages.count("Trying to restart job") == 2
    n, hours = map(float, re.search(r"^(\d+) jobs of one thread: ([\d.]+) hours", messages, re.M).groups())
    cost = START_MINUTES * n + measured_minutes(project)
    print(f"planned {60 * hours:.1f} processor minutes, measured {cost:.1f}")
    assert cost / 2 < 60 * hours < 2 * cost, "a shared machine's processor time varies"
    process = alone.paper(sections(), jobs=1)
    errors = process.communicate(timeout=LONGEST)[1]
    assert process.returncode == 0, errors
    mine, theirs = project.files(), alone.files()
    assert set(mine) == set(theirs) and [k for k in mine if mine[k] != theirs[k]] == []
