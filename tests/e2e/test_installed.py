"""`pip install .` and `pip install -e .`, and then the command itself, from images to SQL."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import embedcache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("pip") is None, reason="needs pip in this environment"),
    pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling: extra 'dev'"),
]


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment of its own, with this project in it."""

    root: Path

    def run(self, command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, out of reach of the clone and of this environment."""
        outside = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COVERAGE_PROCESS_START"}
        kept = {k: v for k, v in os.environ.items() if k not in outside}
        return subprocess.run(
            [str(self.root / "bin" / command), *arguments],
            cwd=cwd,
            env={**kept, "PATH": f"{self.root / 'bin'}{os.pathsep}{kept['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def site_packages(self) -> Path:
        return next(self.root.glob("lib/python*/site-packages"))


def link_dependencies(folder: Path) -> None:
    """Link everything this environment has, but this project: neither its code nor its name."""
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(place).iterdir():
            own = path.name.lower().startswith(("embedcache", "_editable_impl_embedcache"))
            if not own and path.suffix != ".pth" and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)


def install(root: Path, *what: str) -> Installed:
    """Make a virtual environment and install into it, with no network and no new dependency."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    installed = Installed(root)
    link_dependencies(root / "dependencies")
    (installed.site_packages / "dependencies.pth").write_text(f"{root / 'dependencies'}\n")
    before = installed.run("python", "-c", "import embedcache", cwd=root)
    assert "No module named 'embedcache'" in before.stderr  # or it would be the clone's
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "install"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, *offline, *what], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Successfully installed embedcache-fm-{embedcache.__version__}" in done.stdout
    return installed


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Installed:
    """After `pip install .`."""
    return install(tmp_path_factory.mktemp("copied") / "venv", ".")


@pytest.fixture(scope="module")
def editable(tmp_path_factory) -> Installed:
    """After `pip install -e .`."""
    if find_spec("editables") is None:
        pytest.skip("needs editables, as every editable build by hatchling does: extra 'dev'")
    return install(tmp_path_factory.mktemp("editable") / "venv", "-e", ".")


def homes(installed: Installed, cwd: Path) -> dict[str, Path]:
    """Return where its Python finds both packages."""
    code = (
        "import json, embedcache, embedcache_cli.main as cli; "
        "print(json.dumps({'embedcache': embedcache.__file__, 'embedcache_cli': cli.__file__}))"
    )
    done = installed.run("python", "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {name: Path(file).parent for name, file in json.loads(done.stdout).items()}


def test_pip_install_copies_both_packages(copied, tmp_path):
    for name, home in homes(copied, tmp_path).items():
        assert home == copied.site_packages / name
        assert not home.resolve().is_relative_to(ROOT)


def test_pip_install_e_leads_to_the_clone(editable, tmp_path):
    assert homes(editable, tmp_path) == {
        "embedcache": ROOT / "embedcache",
        "embedcache_cli": ROOT / "cli" / "embedcache_cli",
    }


def draw_images(folder: Path) -> None:
    """Draw 12 pictures: two classes, six patients, one picture of each class a patient."""
    chance = np.random.default_rng(0)
    for label, pattern in (("abdomen", (200, 60)), ("brain", (60, 200))):
        (folder / label).mkdir(parents=True)
        for patient in range(6):
            pixels = np.repeat(pattern, 16)[None, :] + chance.normal(0, 20, (24, 32))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / label / f"P{patient:02d}-1.png")


@pytest.mark.parametrize("way", ["copied", "editable"])
def test_the_installed_command_goes_from_a_folder_of_images_to_sql(way, request, tmp_path):
    installed = request.getfixturevalue(way)
    draw_images(tmp_path / "scans")

    def output(*arguments: str, code: int = 0) -> str:
        done = installed.run("embedcache", *arguments, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    assert output("--version") == f"embedcache, version {embedcache.__version__}\n"
    written = output("manifest", "folder", "--root", "scans", "--patient", r"(P\d+)")
    assert written.startswith("data_manifest.csv: 12 images, 6 patients, cohorts: scans\n")
    assert output("manifest", "check").endswith("sound\n")
    assert ": 12 images = 0 cached + 12 encoded + 0 failed" in output("extract", "-m", "pixels")
    assert ": 12 images = 12 cached + 0 encoded + 0 failed" in output("extract", "-m", "pixels")
    status = json.loads(output("status", "--json"))
    assert (status["n_images"], status["n_patients"], status["n_runs"]) == (12, 6, 0)
    assert [(one["encoder"], one["n_held"]) for one in status["encoders"]] == [("pixels", 12)]
    assert "pixels" in output("status")
    table = output("folds", "--folds", "3").splitlines()
    assert table[0].split() == ["fold", "patients", "images", "abdomen", "brain"]
    assert [line.split()[:3] for line in table[2:5]] == [[str(fold), "2", "4"] for fold in range(3)]
    probed = output("probe", "-m", "pixels", "--folds", "3", "--resamples", "100")
    assert "scans: 6 patients, 12 images, tested out of fold" in probed
    query = (
        "SELECT predicted, count(*) AS n FROM predictions JOIN runs USING (run_id) "
        "WHERE correct AND kind = 'probe' GROUP BY ALL ORDER BY ALL"
    )
    rows = list(csv.DictReader(output("sql", query, "--format", "csv").splitlines()))
    assert rows == [{"predicted": "abdomen", "n": "6"}, {"predicted": "brain", "n": "6"}]
    assert output("verify") == "12 rows of 1 encoders checked: sound\n"
    assert output("export", "-m", "pixels", "-o", "rows.npy").split() == [
        "rows.npy",
        "rows.rows.csv",
    ]
    assert np.load(tmp_path / "rows.npy").shape == (12, 256)
    assert output("gc").startswith("0 rows dropped")
    catalog = tmp_path / ".embedcache" / "catalog.duckdb"
    catalog.unlink()
    assert output("index") == ".embedcache/catalog.duckdb\n"
    with duckdb.connect(str(catalog), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM embedding_rows").fetchall() == [(12,)]


def test_the_installed_command_runs_a_network(copied, tmp_path):
    draw_images(tmp_path / "scans")
    assert not copied.run(
        "embedcache", "manifest", "folder", "--root", "scans", "--patient", r"(P\d+)", cwd=tmp_path
    ).returncode
    done = copied.run("embedcache", "extract", "-m", "random:efficientnet-lite0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ": 12 images = 0 cached + 12 encoded + 0 failed" in done.stdout
