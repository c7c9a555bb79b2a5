"""What is in the wheel and in the sdist: the code, and nothing that lies beside it."""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from conftest import ROOT

import embedcache

PACKAGES = {"embedcache": ROOT / "embedcache", "embedcache_cli": ROOT / "cli" / "embedcache_cli"}
CODE = {"embedcache", "cli"}
LITTER = (
    "data_manifest.csv",
    "patients.csv",
    "export.parquet",
    "export.npy",
    "scan.png",
    "phantom/scan.png",
    "images/patient-1/scan.jpg",
    ".embedcache/encoders/e-0/seg/a.zarr/c/0/0",
    ".embedcache/catalog.duckdb",
    "elsewhere/seg/a.zarr/zarr.json",
    "weights.safetensors",
    "tests/real/patient.csv",
    "shared/data/scan.png",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and sdist of a copy of this project in which somebody has worked."""
    source, target = tmp_path_factory.mktemp("source") / "clone", tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(
        ".git",
        ".venv*",
        ".*_cache",
        ".hypothesis",
        ".embedcache",
        "phantom",
        "shared",
        "__pycache__",
    )
    shutil.copytree(ROOT, source, ignore=unwanted)
    for name in LITTER:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"of a patient")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def own_files() -> set[str]:
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.suffix in {".py", ".sql", ".toml", ".yaml"} or path.name == "py.typed"
    }


def test_the_wheel_holds_both_packages_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"embedcache_fm-{embedcache.__version__}.dist-info"
        facts = email.message_from_bytes(archive.read(f"{about}/METADATA"))
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{about}/entry_points.txt").decode())
    beside = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    assert names == own_files() | {f"{about}/{name}" for name in beside}
    assert {"embedcache/py.typed", "embedcache_cli/py.typed"} < names
    assert "embedcache/catalog/schema.sql" in names
    assert wheel.name == f"embedcache_fm-{embedcache.__version__}-py3-none-any.whl"
    assert dict(scripts["console_scripts"]) == {"embedcache": "embedcache_cli.main:main"}
    assert (facts["Name"], facts["License-Expression"]) == ("embedcache-fm", "Apache-2.0")
    assert facts["Requires-Python"] == ">=3.11"


def test_the_sdist_holds_what_builds_the_wheel_and_no_data(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()}
    inside = {name.relative_to(f"embedcache_fm-{embedcache.__version__}") for name in names}
    tops = {name.parts[0] for name in inside}
    assert tops <= {
        "embedcache", "cli", "docs", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md",
        "pyproject.toml", "PKG-INFO", ".gitignore",
    }  # fmt: skip
    assert {"embedcache", "cli", "LICENSE", "README.md", "pyproject.toml"} < tops
    code = {
        str(name).removeprefix("cli/") for name in inside if name.parts[0] in {"embedcache", "cli"}
    }
    assert code == own_files()
    kinds = {name.suffix for name in inside if len(name.parts) > 1}
    assert kinds <= {".py", ".sql", ".toml", ".yaml", ".typed", ".md", ""}, kinds
