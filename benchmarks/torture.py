"""Kill, stop, starve and contradict every verb at random calls, and count what is lost or wrong.

Each episode takes a small project in some state and lets one to four commands work on it at once,
some of which are struck: by SIGKILL, by SIGSTOP until others have worked, by a full disk, by EIO, a
read-only file system or a stale handle at one call of the C library, by a clock that jumps an hour;
or all of them live on a file system without hard links, without locks, or without upper and lower
case. Sometimes another program holds the catalog open. Afterwards `verify` must call sound what
nobody damaged, the same commands must end well, `gc --grace 0` must leave nothing behind, and each
acknowledged row and run must be there, bit for bit.

    python benchmarks/torture.py --faults 1000 --jobs 2

Needs Linux and gcc: the faults come from `torture_shim.c`, which is loaded in front of the C
library. Exit code 1 says that something was lost, wrong, refused or left; 2, that it cannot run.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tortureworld as world
from common import print_machine
from tortureworld import Case, Held, Plan, Process

KILL, STOP, ONCE, FULL, READ_ONLY, READ_ONCE, CLOCK, SIGNAL = range(1, 9)
HOUR_S = 3600
# Fault by name: how it strikes, with which error or jump, and on which file system.
FAULTS: dict[str, dict[str, int]] = {
    "SIGKILL": {"fault": KILL},
    "SIGSTOP": {"fault": STOP},
    "SIGINT": {"fault": SIGNAL, "error": signal.SIGINT},
    "SIGTERM": {"fault": SIGNAL, "error": signal.SIGTERM},
    "ENOSPC": {"fault": FULL, "error": errno.ENOSPC},
    "EDQUOT": {"fault": FULL, "error": errno.EDQUOT},
    "EIO": {"fault": ONCE, "error": errno.EIO},
    "EIO reading": {"fault": READ_ONCE, "error": errno.EIO},
    "ESTALE": {"fault": ONCE, "error": errno.ESTALE},
    "read-only": {"fault": READ_ONLY, "error": errno.EROFS},
    "clock +1 h": {"fault": CLOCK, "jump": HOUR_S},
    "clock -1 h": {"fault": CLOCK, "jump": -HOUR_S},
    "no hard links": {"fault": KILL, "world": world.NO_LINKS},
    "no flock": {"fault": KILL, "world": world.NO_LOCKS},
    "no case": {"fault": KILL, "world": world.NO_CASE},
}
WRONGS = (
    "rows lost",
    "wrong rows",
    "tracebacks",
    "false alarms",
    "failures",
    "hangs",
    "leftovers",
)
TRACEBACKS = (
    "Traceback (most recent call last)",
    "Exception ignored",
    "Fatal Python error",
    "internal error",
)
MOST_AT_ONCE = 4


@dataclass
class Counts:
    """What campaigns have counted."""

    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    n_processes: int = 0
    n_notebooks: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.struck + other.struck,
            self.wrong + other.wrong,
            self.n_processes + other.n_processes,
            self.n_notebooks + other.n_notebooks,
        )


class Campaign:
    """Episodes, and what they have counted."""

    def __init__(self, scratch: Path, cases: Sequence[Case], seed: int) -> None:
        self.scratch, self.cases, self.seed = scratch, cases, seed
        self.folder = scratch / "work"
        self.notes = scratch / "notes"
        self.calls: dict[Case, tuple[int, int]] = {}
        self.held: dict[str, Held] = {}
        self.rows: dict[tuple[str, str], bytes] = {}
        self.runs: dict[str, tuple[str, ...]] = {}
        self.counts = Counts()

    # States and references.

    def prepare(self) -> None:
        """Make the states, run each case undisturbed, and learn what is right."""
        for state in dict.fromkeys([*(case.state for case in self.cases), "full"]):
            self._make_state(state)
        for case in self.cases:
            self._put_state(case.state)
            modules = self.scratch / "modules"
            process = self._run(case, world.shared_plan(), modules=modules)
            assert process.wait(world.PATIENCE_S), f"{case.arguments} hangs"
            assert process.code in self.codes(case), f"{case.arguments}: {process.text}"
            world.import_modules(modules.read_text().split())
            self.calls[case] = process.plan.changes, process.plan.reads
            self._learn(self._look())
        gc.collect()
        gc.freeze()

    def _make_state(self, name: str) -> None:
        if name in self.held:
            return
        if name == "harmed":
            self._make_state("full")
            return
        before, steps = world.STATES[name]
        if before is None:
            self.folder.mkdir()
        else:
            self._make_state(before)
            self._put_state(before)
        for step in steps:
            if callable(step):
                step(self.folder)
                continue
            process = self._run(Case(name, tuple(step)), world.shared_plan())
            assert process.wait(world.PATIENCE_S), f"{step} hangs"
            assert process.code == 0, f"{step}: {process.text}"
        shutil.rmtree(self.scratch / "states" / name, ignore_errors=True)
        shutil.copytree(self.folder, self.scratch / "states" / name)
        held = self._look()
        self.held[name] = held
        self._learn(held)

    def _put_state(self, name: str) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        source = "full" if name == "harmed" else name
        shutil.copytree(self.scratch / "states" / source, self.folder)
        self.notes.unlink(missing_ok=True)

    def _learn(self, held: Held) -> None:
        self.rows |= held.rows
        self.runs |= held.runs

    def _look(self) -> Held:
        held = world.answer_of(lambda: world.look(self.folder), self.folder, self.scratch)
        if isinstance(held, Exception):
            raise held
        return held

    # Processes.

    def _run(self, case: Case, plan: Plan, modules: Path | None = None) -> Process:
        self.counts.n_processes += 1
        output = self.scratch / "outputs" / f"{self.counts.n_processes}.txt"

        def work() -> int:
            try:
                return world.run_command(case.arguments)
            finally:
                if modules is not None:
                    modules.write_text("\n".join(sys.modules))

        return world.fork(" ".join(case.arguments), work, plan, self.folder, output)

    @staticmethod
    def codes(case: Case) -> set[int]:
        """Return the exit codes of a verb that nothing disturbs."""
        # Of a drawn cohort the audit finds what it finds, and `doctor` what ails the machine.
        return {"audit": {0, 5}, "doctor": {0, 1}}.get(case.verb, {0})

    # Episodes.

    def pairs(self, names: Sequence[str]) -> list[tuple[Case, str]]:
        """Return every case with every fault that can strike it, in an order of the seed."""
        pairs = [
            (case, name)
            for name in names
            for case in self.cases
            if self.calls[case][FAULTS[name]["fault"] == READ_ONCE]
        ]
        random.Random(self.seed).shuffle(pairs)
        return pairs

    def episode(self, number: int, case: Case, name: str) -> None:
        """Strike one case a few times, then judge what is left."""
        chance = random.Random(f"{self.seed}/{number}")
        self._put_state(case.state)
        trouble = _Trouble(self, f"episode {number}, {name}, {' '.join(case.arguments)}")
        if case.state == "harmed":
            trouble.label += f", {', '.join(world.harm(self.folder, chance))} damaged"
        around = {key: FAULTS[name].get(key, 0) for key in ("world",)}
        around["lock_error"] = chance.choice([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
        used = [case]
        for _ in range(chance.randint(2, 4)):
            used += self._round(case, name, around, chance, trouble)
        self._judge_end(used, around, trouble)

    def _round(self, case, name, around, chance, trouble) -> list[Case]:
        beside = [other for other in self.cases if other.state == case.state]
        n_beside = chance.choice([0, 0, 0, 1, 2, MOST_AT_ONCE - 1])
        others = [chance.choice(beside) for _ in range(n_beside)]
        if "gc" in {other.verb for other in [case, *others]}:
            others = []  # without a grace time nothing may be read meanwhile
        reader, writer = os.pipe()
        notebook = None
        if case.state not in {"bare", "part", "harmed"} and chance.random() < 0.25:
            output = self.scratch / "outputs" / f"{self.counts.n_processes}-notebook.txt"
            plan = world.shared_plan(**around)

            def hold() -> int:
                os.close(writer)
                return world.notebook(self.folder, reader)

            notebook = world.fork("notebook", hold, plan, self.folder, output)
            self.counts.n_notebooks += 1
        plans = [self._plan(case, name, around, chance)]
        plans += [
            self._plan(other, name, around, chance)
            if chance.random() < 0.5
            else world.shared_plan(**around)
            for other in others
        ]
        running = [
            (other, self._run(other, plan))
            for other, plan in zip([case, *others], plans, strict=True)
        ]
        for _, process in running:
            self._wait(process, case, around)
        os.close(writer)
        os.close(reader)
        for other, process in running:
            happened = bool(process.plan.happened)
            if happened:
                self.counts.struck[other.verb, name] += 1
            trouble.judge(other, process, name)
        if notebook is not None and (not notebook.wait(world.PATIENCE_S) or notebook.code):
            trouble.add("failures", f"notebook: {notebook.text[-1500:]}")
        return others

    def _plan(self, case: Case, name: str, around: dict[str, int], chance) -> Plan:
        changes, reads = self.calls[case]
        fault = FAULTS[name]
        most = reads if fault["fault"] == READ_ONCE else changes
        values = {**around, **fault, "at": chance.randint(1, max(1, most))}
        return world.shared_plan(**values)

    def _wait(self, process: Process, case: Case, around: dict[str, int]) -> None:
        """Wait for a process; where it stops, let others work before it goes on."""
        while process.wait(world.PATIENCE_S) and os.WIFSTOPPED(process.status or 0):
            after = [("gc", "--grace", "0"), case.arguments]
            visitors = [
                self._run(Case(case.state, arguments), world.shared_plan(**around))
                for arguments in after
                if case.verb != "verify --repair" or arguments == case.arguments
            ]
            for visitor in visitors:  # which may wait for what the stopped one holds
                visitor.wait(1.5)
            os.kill(process.number, signal.SIGCONT)
            process.status = None
            for visitor in visitors:
                visitor.wait(world.PATIENCE_S)
        if process.status is None:
            os.kill(process.number, signal.SIGKILL)
            process.wait(world.PATIENCE_S)
            process.status = 9 << 16  # no status that a process can have

    def _judge_end(self, used: Sequence[Case], around: dict[str, int], trouble: _Trouble) -> None:
        state = used[0].state
        is_harmed = state == "harmed"
        check = Case(state, ("verify",))
        sweep = Case(state, ("gc", "--grace", "0"))
        after = [*dict.fromkeys(used), check, sweep]
        if not is_harmed:
            after = [check, *after]
        if "quickstart" in {case.verb for case in used}:
            quick = ("--manifest", str(Path("quick", world.MANIFEST)))
            after += [Case(state, (*case.arguments, *quick)) for case in (check, sweep)]
        for case in after:
            if case.verb == "gc":  # as after the grace time that temporaries have in any case
                world.grow_old(self.folder)
            process = self._run(case, world.shared_plan(**around))
            process.wait(world.PATIENCE_S)
            if process.status is None:
                os.kill(process.number, signal.SIGKILL)
                process.wait(world.PATIENCE_S)
                trouble.add("hangs", f"{process.name}, run again")
            elif process.code not in self.codes(case):
                kind = "false alarms" if case.verb == "verify" else "failures"
                trouble.add(
                    kind, f"{process.name}, afterwards: exit {process.code}: {process.text[-1500:]}"
                )
            elif any(words in process.text for words in TRACEBACKS):
                trouble.add("tracebacks", f"{process.name}, afterwards: {process.text[-2500:]}")
        self._judge_held(trouble, self.held["full" if is_harmed else state])

    def _judge_held(self, trouble: _Trouble, before: Held) -> None:
        wanted = world.wanted_keys(self.folder)
        try:
            held = self._look()
        except Exception as error:
            trouble.add("rows lost", f"nothing can be read: {type(error).__name__}: {error}")
            return
        rows = {key for key in before.rows if key[1] in wanted}
        runs = set(before.runs) if "damaged" not in trouble.label else set()
        for line in self.notes.read_text().splitlines() if self.notes.exists() else ():
            _, first, *key = line.rsplit(" ", 2)
            if first == "run":
                runs |= set(key) if "damaged" not in trouble.label else set()
            else:
                rows.add((first, key[0]))
        lost = [key for key in rows if key not in held.rows]
        trouble.add_all("rows lost", [f"row {key[:12]} of {fp[:12]}" for fp, key in lost])
        trouble.add_all("rows lost", [f"run {run_id}" for run_id in runs - held.runs.keys()])
        wrong = [key for key, row in held.rows.items() if self.rows.get(key, row) != row]
        trouble.add_all("wrong rows", [f"row {key[:12]} of {fp[:12]}" for fp, key in wrong])
        other = [
            name for name, tables in held.runs.items() if self.runs.get(name, tables) != tables
        ]
        trouble.add_all("wrong rows", [f"run {run_id}" for run_id in other])
        # Without locks nobody can tell who holds one, so files of locks stay, and what they guard.
        is_lockless = trouble.label.split(", ")[1] == "no flock"
        left = [n for n in held.leftovers if not (is_lockless and world.is_lock_or_guarded(n))]
        trouble.add_all("leftovers", left)
        trouble.add_all("failures", [f"two names but for case: {name}" for name in held.twins])


class _Trouble:
    """What is wrong after an episode, counted and shown at once."""

    def __init__(self, campaign: Campaign, label: str) -> None:
        self.campaign, self.label = campaign, label

    def add(self, kind: str, what: str) -> None:
        self.add_all(kind, [what])

    def add_all(self, kind: str, things: Sequence[str]) -> None:
        if things:
            self.campaign.counts.wrong[kind] += len(things)
            more = f" and {len(things) - 3} more" if len(things) > 3 else ""
            print(f"{kind}: {self.label}: {'; '.join(things[:3])}{more}", file=sys.stderr)

    def judge(self, case: Case, process: Process, name: str) -> None:
        """Judge how a process ended, whether it was struck or stood beside one that was."""
        if process.status == 9 << 16:
            self.add("hangs", f"{process.name} at call {process.plan.at}")
            return
        at = f"{process.name} at call {process.plan.at}: exit {process.code}"
        if any(words in process.text for words in TRACEBACKS):
            self.add("tracebacks", f"{at}: {process.text[-3000:]}")
            return
        is_struck = bool(process.plan.happened)
        if is_struck and FAULTS[name]["fault"] == KILL and process.code == -signal.SIGKILL:
            return
        allowed = self.campaign.codes(case)
        if is_struck and FAULTS[name]["fault"] == SIGNAL:
            number = FAULTS[name]["error"]
            allowed = allowed | {128 + number, -number}
        is_error = is_struck and FAULTS[name]["fault"] not in {KILL, STOP, CLOCK, SIGNAL}
        if is_error or case.state == "harmed":
            allowed = allowed | {1, 3}
        # What cannot be read cannot be called sound.
        if case.state == "harmed" or (is_error and case.verb == "verify"):
            allowed = allowed | {4}
        if process.code not in allowed:
            kind = "false alarms" if process.code == 4 else "failures"
            self.add(kind, f"{at}: {process.text[-1500:]}")
        elif {process.code} - self.campaign.codes(case) == {
            1
        } and "embedcache: " not in process.text:
            self.add("failures", f"{at} without a reason: {process.text[-1500:]}")


def report(counts: Counts) -> int:
    """Print how often each verb was struck by what, and what came of it; return the exit code."""
    print_machine("duckdb", "numpy", "pyarrow", "torch", "zarr")
    verbs = sorted({verb for verb, _ in counts.struck})
    faults = [name for name in FAULTS if any(counts.struck[verb, name] for verb in verbs)]
    heads = [name.replace(" ", "-") for name in faults]
    width = max(map(len, verbs), default=4)
    print(f"\n{'':{width}}  {'  '.join(heads)}")
    for verb in verbs:
        cells = [
            f"{counts.struck[verb, name]:>{len(head)}}"
            for name, head in zip(faults, heads, strict=True)
        ]
        print(f"{verb:{width}}  {'  '.join(cells)}")
    beside = f"{counts.n_processes} processes, {counts.n_notebooks} open notebooks"
    print(f"\n{counts.struck.total()} faults, {beside}, {counts.seconds / 60:.0f} min")
    for kind in WRONGS:
        print(f"{kind:12}  {counts.wrong[kind]}")
    for verb in world.uncovered_verbs():
        print(f"not covered: {verb} ({world.UNCOVERED.get(verb, 'no case yet')})")
    return 1 if any(counts.wrong.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=1000, help="faults that have to happen")
    parser.add_argument("--minutes", type=float, default=60.0, help="most minutes that it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="campaigns side by side")
    parser.add_argument("--verbs", default="", help="'extract,gc'; all where none is named")
    parser.add_argument("--only", default="", help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--episode", type=int, help="this one alone, to look at it again")
    arguments = parser.parse_args()
    if sys.platform != "linux" or shutil.which("gcc") is None:
        print("the faults need Linux and gcc (LD_PRELOAD); nothing was done", file=sys.stderr)
        return 2
    names = [name for name in FAULTS if not arguments.only or name in arguments.only.split(",")]
    cases = world.cases_of([verb for verb in arguments.verbs.split(",") if verb])
    if not (names and cases):
        parser.error("--only and --verbs leave nothing")
    if arguments.jobs > 1 and "TORTURE_COUNTS" not in os.environ:
        return _side_by_side(arguments)
    place = os.environ.get("TORTURE_SCRATCH") or tempfile.mkdtemp(prefix="torture-")
    os.environ["TORTURE_SCRATCH"] = place
    scratch = Path(place).resolve()
    world.restart_with_shim(scratch)
    (scratch / "outputs").mkdir()
    try:
        counts = _torment(Campaign(scratch, cases, arguments.seed), arguments, names)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if file := os.environ.get("TORTURE_COUNTS"):
        Path(file).write_bytes(pickle.dumps(counts))
        return 0
    return report(counts)


def _side_by_side(arguments: argparse.Namespace) -> int:
    """Run several campaigns of other seeds, and sum up."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number)) for number in range(arguments.jobs)]
        share = ["--faults", str(-(-arguments.faults // arguments.jobs))]
        jobs = [
            subprocess.Popen(
                [sys.executable, *sys.argv, *share, "--seed", f"{arguments.seed}{number}"],
                env={**os.environ, "TORTURE_COUNTS": str(file)},
            )
            for number, file in enumerate(files)
        ]
        codes = [job.wait() for job in jobs]
        if any(codes):
            return 1
        counts = Counts()
        for file in files:
            counts += pickle.loads(file.read_bytes())
    counts.seconds = time.monotonic() - start
    return report(counts)


def _torment(campaign: Campaign, arguments: argparse.Namespace, names: list[str]) -> Counts:
    start = time.monotonic()
    world.prepare_process(campaign.notes)
    campaign.prepare()
    pairs = campaign.pairs(names)
    first = arguments.episode or 0
    last = first if arguments.episode is not None else 100 * arguments.faults
    for number in range(first, last + 1):
        n_faults = campaign.counts.struck.total()
        if n_faults >= arguments.faults or time.monotonic() > start + 60 * arguments.minutes:
            break
        campaign.episode(number, *pairs[number % len(pairs)])
        if n_faults // 50 < campaign.counts.struck.total() // 50:
            print(f"{campaign.counts.struck.total()} faults so far", file=sys.stderr)
    campaign.counts.seconds = time.monotonic() - start
    return campaign.counts


if __name__ == "__main__":
    sys.exit(main())
