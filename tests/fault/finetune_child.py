"""Trainings in processes of their own, to be killed: `finetune_child.py`, folders on stdin.

Torch is imported once and used by the children only, each forked for one training: a start costs
milliseconds instead of seconds. For each folder its child's process id is printed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_encoders

import embedcache
from embedcache.finetune import train  # noqa: F401 - imported before any fork

CHANGES = {"epochs": 4, "batch_size": 8, "lr": 1e-3}


def main(folder: Path) -> None:
    """Train the tiny transformer on the images of a folder."""
    embedcache.open(folder).finetune(
        "tiny-vit",
        changes=CHANGES,
        cohort_options={"folds": 2},
        encoder_file=Path(tiny_encoders.__file__),
        workers=0,
        n_resamples=100,
    )


def serve() -> None:
    """Fork a training for each line of stdin, and reap those that ended."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            main(Path(line.strip()))
            os._exit(0)
        tell(child)
        _, status = os.waitpid(child, 0)
        tell(os.waitstatus_to_exitcode(status))


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
