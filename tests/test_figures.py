"""What the documentation says was measured is what `benchmarks/results` holds."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
from conftest import ROOT

OUTPUTS = sorted((ROOT / "benchmarks" / "results").glob("*.txt"))
CHECKS = {"bench_cuda"}  # which are run where somebody doubts a machine; no page quotes them
SCRIPTS = [
    file
    for file in sorted([*(ROOT / "benchmarks").glob("*_*.py"), ROOT / "benchmarks" / "torture.py"])
    if file.stem not in CHECKS
]
FIGURE = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]"


def without_command_line(text: str) -> str:
    return re.sub(r"\A\$ .*\n", "", text).strip("\n")


def output(script: str) -> str:
    text = (ROOT / "benchmarks" / "results" / f"{script}.txt").read_text(encoding="utf-8")
    return without_command_line(text)


def sections() -> list[tuple[str, str]]:
    """Return the sections that name a script, each with the first that it names."""
    pages = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))]
    return [
        (named[1], section)
        for text in pages
        for section in re.split(r"(?m)^(?=#)", text)
        if (named := re.search(r"\(\.\./benchmarks/(\w+)\.py\)", section))
    ]


def table_rows(text: str) -> list[list[str]]:
    rows = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip("`* ") for cell in row.split(" | ")] for row in rows]


BLOCKS = [
    (script, block)
    for script, section in sections()
    for block in re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
]
FIGURES = [
    (script, row)
    for script, section in sections()
    for row in table_rows(section)
    if re.search(FIGURE, " ".join(row))
]


@pytest.mark.parametrize(("script", "block"), BLOCKS, ids=[script for script, _ in BLOCKS])
def test_a_block_is_the_output_of_the_script_its_section_names(script, block):
    assert without_command_line(block) == output(script)


@pytest.mark.parametrize(("script", "row"), FIGURES, ids=[" ".join(row[:2]) for _, row in FIGURES])
def test_each_score_of_a_table_is_in_the_output_for_that_encoder(script, row):
    # A line begins with the encoder, or with the cohort and then the encoder.
    lines = [line for line in output(script).splitlines() if row[0] in line.split()[:2]]
    for cell in row[1:]:
        for figure, p in re.findall(rf"({FIGURE})(?:, p (\d\.\d{{3}}))?", cell):
            wanted = [line for line in lines if figure in line]
            assert wanted, f"{figure} of {row[0]} is not in {script}.txt"
            ends = f"corrected p {p}" if p else ""
            assert any(line.endswith(ends) for line in wanted), f"{figure}, p {p} of {row[0]}"


def test_the_costs_of_the_encoders_are_the_output():
    costs = {line.split()[0]: line.split()[1:] for line in output("bench_encoders").splitlines()}
    [section] = [text for script, text in sections() if script == "bench_encoders"]
    rows = [row for row in table_rows(section) if len(row) == 7]
    assert [row[0] for row in rows] == list(costs)[2:]
    for name, *shown in rows:
        parameters, gmacs, speed, _, memory = costs[name]
        assert shown[:4] == [parameters, gmacs, speed, memory], name


def test_the_tolerances_are_the_output():
    [section] = [text for script, text in sections() if script == "bench_tolerance"]
    rows = re.findall(r"^\| (?!compared|---)[^|]* \| (.*) \| (.*) \|$", section, re.MULTILINE)
    blocks = output("bench_tolerance").split("\n\n")[1:]
    for block, cells in zip(blocks, zip(*rows, strict=True), strict=True):
        measured = re.findall(r"  (\d\S*)(?: at least)?$", block, re.MULTILINE)
        shown = re.findall(r"\d[\d.e-]*", " ".join(cells))
        assert list(map(float, shown)) == list(map(float, measured)), block.splitlines()[0]


def test_every_output_belongs_to_a_script_and_is_spoken_of():
    assert [file.stem for file in OUTPUTS] == [file.stem for file in SCRIPTS]
    assert {file.stem for file in SCRIPTS} == {
        name
        for file in (ROOT / "docs").glob("*.md")
        for name in re.findall(
            r"benchmarks/(\w+_\w+|torture)\.py", file.read_text(encoding="utf-8")
        )
    }
    assert len(BLOCKS) >= 9
    assert len(FIGURES) >= 12


@pytest.fixture(scope="module")
def common() -> ModuleType:
    """The module that the scripts share, which is in no package."""
    spec = importlib.util.spec_from_file_location("common", ROOT / "benchmarks" / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_output_begins_with_its_command_line(common, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(ROOT / "benchmarks" / "bench_x.py"), "--n", "5"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common.print_machine("numpy")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "$ OMP_NUM_THREADS=1 python benchmarks/bench_x.py --n 5"
    assert "cores; Python 3." in second


def test_a_command_line_does_not_say_where_data_lie(common, monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    given = ["--data", "/home/me/lung", f"--work={tmp_path}/w", "../up", "mine", "~/f.npz"]
    models = ["open_clip:ViT-B-32/laion2b", "random:resnet50", str(ROOT / "docs" / "cli.md")]
    assert common.command_line(["benchmarks/x.py", *given, *models]) == (
        "python benchmarks/x.py --data lung --work=w up mine f.npz open_clip:ViT-B-32/laion2b "
        "random:resnet50 docs/cli.md"
    )


def test_no_output_names_a_place_of_a_machine():
    for file in OUTPUTS:
        found = re.findall(r"(?:(?<=\s)|^)/\w+/\S*", file.read_text(encoding="utf-8"))
        assert not found, f"{file.name}: {found}"
