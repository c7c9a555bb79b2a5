"""What finds everything cached, or only looks, never pays for torch, timm or scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from embedcache_cli.main import VERBS

import embedcache
from embedcache.encoders import registry
from embedcache.encoders.spec import Encoder, identity_of
from embedcache.testing import write_cohort

HEAVY = {"torch", "torchvision", "timm", "sklearn"}
# The command, and then the names of the packages that it imported, on the last line of stdout.
CHILD = """
import json, sys
from embedcache_cli.main import run
code = run(sys.argv[1:])
print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""
MODELS = ("sononet16", "random:sononet16", "timm:resnet10t")


class Drawn(Encoder):
    """Stands for a network: it has the name, the facts and the fingerprint of one."""

    def encode(self, batch):
        start = batch.mean(axis=(1, 2, 3))[:, None]
        return (start + np.arange(self.spec.dim)).astype(np.float32)


def drawn(found, *, device):
    digest = found.weights_digest or "drawn from a fixed seed"
    return Drawn(found.spec, identity_of(found.spec, digest, found.precision))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """300 images, encoded by three networks; nothing here ran one."""
    folder = tmp_path_factory.mktemp("encoded")
    write_cohort(folder, n_patients=50)
    (folder / "weights.pth").write_bytes(b"stands for a checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", drawn)
        for model in MODELS:
            embedcache.open(folder).extract(model, **weights(folder, model))
        embedcache.open(folder).extract("pixels")
    return folder


def weights(folder: Path, model: str) -> dict[str, Path]:
    return {} if model.startswith("random:") else {"weights": folder / "weights.pth"}


def packages(folder: Path, *arguments: object) -> tuple[set[str], str]:
    """Run the command in a process of its own; return what it imported, and what it printed."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out, _, names = done.stdout.rstrip("\n").rpartition("\n")
    return set(json.loads(names)), out


@pytest.mark.parametrize("model", MODELS)
def test_a_rerun_that_finds_everything_cached_imports_no_torch(encoded, model):
    assert version("torch")
    assert version("timm")
    given = [f"--{name}={path}" for name, path in weights(encoded, model).items()]
    imported, out = packages(encoded, "extract", "-m", model, *given)
    assert ": 300 images = 300 cached + 0 encoded + 0 failed" in out
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["status"],
        ["sql", "SELECT count(*) FROM embeddings"],
        ["verify"],
        ["manifest", "check"],
        ["index"],
        ["gc"],
        ["export", "-m", "pixels", "-o", "rows.npy"],
        ["extract", "-m", "pixels"],
        ["encoders"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_only_looks_imports_no_torch(encoded, arguments):
    assert not packages(encoded, *arguments)[0] & HEAVY


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM embedding_rows WHERE patient_id = 'home-000'",
        "SELECT label, count(*) FROM images GROUP BY label",
        "FROM patients",
    ],
)
def test_a_query_on_an_up_to_date_catalog_imports_neither_arrow_nor_numpy(encoded, query):
    packages(encoded, "index")
    imported, _ = packages(encoded, "sql", query)
    assert "duckdb" in imported
    assert not imported & {*HEAVY, "numpy", "pyarrow", "zarr", "scipy", "PIL"}


def test_help_imports_none_of_what_the_verbs_work_with(tmp_path):
    heavy = HEAVY | {"numpy", "pyarrow", "duckdb", "zarr", "scipy", "PIL"}
    code = (
        "import json, sys; from embedcache_cli.main import run; "
        f"[run([verb, '--help']) for verb in {list(VERBS)}]; "
        "print(); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not set(json.loads(done.stdout.splitlines()[-1])) & heavy
