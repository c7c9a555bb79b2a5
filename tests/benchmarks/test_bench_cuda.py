"""The check of a GPU is rehearsed on the CPU, and finds what is wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "benchmarks"


def run(*arguments):
    return subprocess.run(
        [sys.executable, FOLDER / "bench_cuda.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("bench_cuda", "commandcheck", "common", "devicecheck", "pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("bench_cuda")


@pytest.mark.slow
def test_every_part_reports_on_a_cpu(tmp_path):
    done = run("--device", "cpu", "--tiny", "--seconds", 600, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " python benchmarks/bench_cuda.py --device cpu --tiny " in done.stdout.splitlines()[0]
    assert done.stdout.endswith("\nall as expected\n")
    results = json.loads((tmp_path / "out.json").read_text())
    assert list(results) == ["parity", "feed", "rates", "memory", "survival", "finetune"]
    for part, rows in results.items():
        assert rows, part
        assert not any("raised" in row for row in rows.values()), part
    precisions = ("fp32", "bf16", "fp16")
    assert set(results["parity"]) == {
        f"{name} {precision}" for name in ("mofo", "efficientnet-lite0") for precision in precisions
    }
    assert results["parity"]["mofo fp32"]["error"] == 0  # the CPU beside itself
    assert all(row["images_per_s"] > 0 for row in results["feed"].values())
    for row in results["rates"].values():
        assert min(row["bare"], row["queued"], row["pass_grey"], row["pass_rgb"]) > 0
    assert results["memory"] == {"batch": {"skipped": "no GPU"}}
    assert results["survival"]["run again"]["said"].endswith("24 cached + 0 encoded + 0 failed")
    assert results["survival"]["verify"]["code"] == 0
    trainings = results["finetune"]
    assert trainings["fp32"]["loss"] == trainings["fp32 again"]["loss"]
    assert len(trainings["bf16"]["validation_loss"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "parity,nothing"], "no part 'nothing'; there are parity, feed, rates, memory"),
        (["--device", "gpu"], "no device 'gpu'; expected auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_what_cannot_be_checked_is_refused(bench, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["bench_cuda.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert message in capsys.readouterr().err


SOUND = {"error": 1e-6, "cosine": 1.0, "repeats": True, "neighbours_do_not_matter": True}


@pytest.mark.parametrize(
    ("part", "name", "row", "objection"),
    [
        ("parity", "usfm fp32", {**SOUND, "error": 0.1}, "an error of 0.1"),
        ("parity", "usfm bf16", {**SOUND, "cosine": 0.5}, "a cosine of 0.5"),
        ("parity", "usfm fp16", {**SOUND, "repeats": False}, "other bits when repeated"),
        (
            "parity",
            "usfm fp32",
            {**SOUND, "neighbours_do_not_matter": False},
            "other bits beside other pictures",
        ),
        ("rates", "usfm fp32", {"raised": "KeyError: 'x'"}, "raised KeyError: 'x'"),
        ("memory", "batch", {"halved_to": 8, "error": 0.1}, "an error of 0.1"),
        ("memory", "load", {"is_clean": False, "said": "none"}, "no clean error: none"),
        ("survival", "verify", {"code": 5}, "exit code 5"),
        ("survival", "cuda:9", {"is_clean": False, "said": "Traceback"}, "no clean error: Trace"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(bench, part, name, row, objection):
    [found] = bench.objections({part: {name: row}})
    assert found.startswith(f"{part}, {name}: {objection}")


def test_what_is_as_it_should_be_is_not(bench):
    sound = {
        "parity": {"usfm fp32": SOUND, "usfm bf16": {**SOUND, "error": 0.01, "cosine": 0.999}},
        "memory": {"load": {"is_clean": True, "said": "DeviceError: full"}},
        "survival": {"killed": {"code": -9, "said": ""}, "verify": {"code": 0, "said": "sound"}},
        "finetune": {"fp32": {"loss": [[0.5]]}, "fp32 again": {"loss": [[0.5]]}},
    }
    assert list(bench.objections(sound)) == []


def test_a_training_that_does_not_repeat_is_named(bench):
    trainings = {"fp32": {"loss": [[0.5]]}, "fp32 again": {"loss": [[0.6]]}}
    assert list(bench.objections({"finetune": trainings})) == [
        "finetune: the same training gave other losses"
    ]


def test_a_part_that_fails_says_so_and_the_next_one_runs(bench, monkeypatch, tmp_path, capsys):
    class Unhurried:
        def has_time(self, seconds):
            return True

    def broken(check):
        yield "first", {"code": 0}
        raise ZeroDivisionError

    monkeypatch.setattr(bench, "PARTS", {"broken": broken, "next": lambda _: [("second", {})]})
    results = bench.run_parts(Unhurried(), ["broken", "next"], tmp_path / "out.json")
    assert results["broken"]["first"] == {"code": 0}
    assert results["broken"]["part"] == {"raised": "ZeroDivisionError: "}
    assert results["next"] == {"second": {}}
    assert json.loads((tmp_path / "out.json").read_text()) == results
    assert "broken, 0.0 s\n  first: " in capsys.readouterr().out
