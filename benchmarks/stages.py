"""Run the command line in this process, and write down where its time went, for bench_protocol.py.

    python benchmarks/stages.py FILE.json STARTED ARGUMENT ...

STARTED is the time of `time.time()` when this process was started. A stage that calls another one
does not count the other's seconds. Nothing is imported before the clock runs that the command line
would not import itself.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import GeneratorType

STAGES = {
    "embedcache.verbs.session:Session.study": "reading",
    "embedcache.verbs.session:Session.rows": "reading",
    "embedcache.protocol.nested:_choose": "fits to choose",
    "embedcache.protocol.nested:_fit": "refits",
    "embedcache.verbs.probe_run:fit_probe": "predictions",
    "embedcache.runs.once:evaluate": "scores",
    "embedcache.runs.files:RunFiles.write": "writing",
    "embedcache.verbs.probe:renew_catalog": "writing",
    "embedcache.verbs.probe:compare_outcomes": "comparison",
    "embedcache.verbs.controls:not_beaten": "comparison",
}


class Clock:
    """Seconds by stage: those of a stage within another are its own alone."""

    def __init__(self, first: float) -> None:
        self.seconds: dict[str, float] = defaultdict(float, {"import": first})
        self._running, self._since = ["other"], time.perf_counter()

    def turn(self) -> None:
        """Book the time since the last turn."""
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def watch(self, place: str, stage: str) -> None:
        """Book the time of a function under a stage."""
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        function = getattr(owner, name)

        @functools.wraps(function)
        def clocked(*args, **kwargs):
            self.turn()
            self._running.append(stage)
            try:
                result = function(*args, **kwargs)
                return list(result) if isinstance(result, GeneratorType) else result
            finally:
                self.turn()
                self._running.pop()

        setattr(owner, name, clocked)


def main() -> None:
    file, started, *arguments = sys.argv[1:]
    for place in STAGES:
        importlib.import_module(place.partition(":")[0])
    from embedcache_cli.main import run

    clock = Clock(time.time() - float(started))
    for place, stage in STAGES.items():
        clock.watch(place, stage)
    try:
        sys.exit(run(arguments))
    finally:
        clock.turn()
        Path(file).write_text(json.dumps(clock.seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
