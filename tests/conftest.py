"""What the tests share: small projects, the command in this process, and where real data lies."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from embedcache_cli.main import run

import embedcache
from embedcache.encoders import plugins
from embedcache.project import Project
from embedcache.testing import write_cohort

ROOT = Path(__file__).parents[1]
# Seconds until a test gives up on a process: only one that hangs takes as long on a slow machine.
PATIENCE = 600
# First statements of a process: the tests may themselves run in the background, where a shell has
# SIGINT ignored by all that they start, so one that stands for a job in the foreground says so.
IN_FOREGROUND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
IN_BACKGROUND = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
REAL_DATA = Path(os.environ.get("EMBEDCACHE_REAL_DATA", ROOT.parent / "shared" / "data"))


def real(*parts: str) -> Path:
    """Return a path below the real data, or skip the test where there is none."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real data in {REAL_DATA} (EMBEDCACHE_REAL_DATA)")
    return path


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that are not there yet. `mktemp` would look through those of all tests each time."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, _homes: Iterator[Path]):
    for name in list(os.environ):
        if name.startswith("EMBEDCACHE_"):
            monkeypatch.delenv(name)
    home = next(_homes)
    monkeypatch.setenv("EMBEDCACHE_WEIGHTS_HOME", str(home / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(plugins, "_from_files", {})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Twelve patients at home, ten abroad; nothing encoded yet."""
    write_cohort(tmp_path, cohorts=("home", "abroad"))
    return embedcache.open(tmp_path)


@pytest.fixture
def probed(project: Project) -> Project:
    """The same, encoded with 'pixels' and probed."""
    project.extract("pixels")
    project.probe("pixels")
    return project


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same as `probed`, made once for the tests of a file that only ask it."""
    folder = tmp_path_factory.mktemp("asked")
    write_cohort(folder, cohorts=("home", "abroad"))
    project = embedcache.open(folder)
    project.extract("pixels")
    project.probe("pixels")
    return project


@dataclass(frozen=True, slots=True)
class Printed:
    """What the command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Printed]:
    """Run `embedcache ARGUMENTS` in `tmp_path`, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCACHE_RESAMPLES", "200")  # a fiftieth of what a user waits for

    def call(*arguments: str) -> Printed:
        capfd.readouterr()
        code = run(list(map(str, arguments)))
        out, err = capfd.readouterr()
        return Printed(code, out, err)

    return call
