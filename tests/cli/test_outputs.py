"""What may be written where a user says, and what a terminal is shown of names from outside."""

from __future__ import annotations

import json
import os

import pytest
from edits import rewrite_manifest
from embedcache_cli.output import print_json, print_line, print_table, say

import embedcache


@pytest.fixture
def encoded(project):
    project.extract("pixels")
    return project.workspace.manifest.parent


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("data_manifest.csv", "holds a manifest; name another file as -o, or pass --overwrite"),
        ("copy.csv", "holds a manifest"),
        ("picture.png", "holds something that is no csv"),
        (".embedcache/encoders/x.csv", "inside the store "),
        (".embedcache/embedcache.json", "inside the store "),
        ("images", "images: a folder; name a file as -o"),
    ],
)
def test_an_output_replaces_no_manifest_no_image_and_no_file_of_a_store(
    encoded, command, output, message
):
    (encoded / "copy.csv").symlink_to("data_manifest.csv")
    picture = next((encoded / "images").iterdir())
    (encoded / "picture.png").write_bytes(picture.read_bytes())
    before = {path: path.read_bytes() for path in encoded.rglob("*") if path.is_file()}
    answers = [
        command("sql", "SELECT 1", "--format", "csv", "-o", output),
        *(
            command("export", "-m", "pixels", "--format", kind, "-o", output)
            for kind in ("npy", "parquet", "safetensors")
        ),
    ]
    assert message in answers[0].err
    assert [(answer.code, answer.err.count("\n")) for answer in answers] == [(1, 1)] * 4
    assert {path: path.read_bytes() for path in encoded.rglob("*") if path.is_file()} == before


def test_a_pipe_that_no_program_reads_is_refused_and_not_waited_for(encoded, command):
    os.mkfifo(encoded / "pipe.npy")
    for arguments in (("export", "-m", "pixels"), ("sql", "SELECT 1", "--format", "csv")):
        answer = command(*arguments, "-o", "pipe.npy")
        assert (answer.code, answer.err.count("no program reads; start the reader first")) == (1, 1)


def test_an_earlier_output_is_replaced_and_anything_else_where_asked(encoded, command):
    for name in ("x.npy", "x.parquet", "x.safetensors"):
        for where in ("cohort = 'home'", "cohort = 'abroad'"):
            assert command("export", "-m", "pixels", "-o", name, "--where", where).code == 0
        assert command("export", "-m", "pixels", "-o", name, "--format", "npy").code == (
            0 if name == "x.npy" else 1
        )
        assert command("sql", "SELECT 1", "-o", name, "--format", "csv").code == 1
        assert command("sql", "SELECT 1", "-o", name, "--format", "csv", "--overwrite").code == 0
        assert (encoded / name).read_text() == "1\n1\n"
    for name in ("y.csv", "y.json", "y.txt", "y.parquet"):
        for n in (1, 2):
            assert command("sql", f"SELECT {n} AS n", "-o", name).code == 0
    images = ("sql", "FROM images", "-o", "z.csv")  # which then is a manifest
    assert [command(*images, *more).code for more in ((), (), ("--overwrite",))] == [0, 1, 0]
    assert command("sql", "SELECT 1", "-o", ".embedcache/x.csv", "--overwrite").code == 1


def test_a_manifest_is_written_into_no_store_and_over_no_image_unasked(encoded, command):
    picture = next((encoded / "images").iterdir())
    for output in (picture, encoded / ".embedcache" / "m.csv", encoded / "images"):
        before = picture.read_bytes()
        result = command(
            *("manifest", "folder", "--root", ".", "--patient", "(home|abroad)-[0-9]+"),
            *("-o", output, "--data-root", "."),
        )
        assert (result.code, result.err.count("\n")) == (1, 1), result.err
        assert picture.read_bytes() == before


NASTY = "\x1b[2J\x1b]0;owned\x07x\r\u202ey"


def test_a_name_steers_no_terminal_and_breaks_no_line(capfd):
    print_line(f"a {NASTY}\nb")
    print_table([NASTY, "n"], [(NASTY, 1), ("x\ny", 2)], f"of {NASTY}")
    say(f"note: {NASTY}\nb")
    printed, said = capfd.readouterr()
    assert len(printed.splitlines()) == 6
    assert said.count("\n") == 1
    assert not set(printed + said) & set("\x1b\x07\r\u202e")
    assert r"\x1b[2J\x1b]0;owned\x07x\r\u202ey" in printed


def test_json_keeps_what_a_table_escapes(capfdbinary):
    print_json({"name": NASTY, "half": "\udcff", "plain": "Zo\u00eb"})
    text = capfdbinary.readouterr().out.decode()
    assert json.loads(text) == {"name": NASTY, "half": "\udcff", "plain": "Zo\u00eb"}
    assert "Zo\u00eb" in text


@pytest.mark.slow
def test_names_of_a_manifest_are_shown_escaped_by_every_verb(encoded, command):
    def edit(lines):
        cells = lines[0].split(",")
        cells[0], cells[3] = f'"{NASTY}\n1"', f'"{NASTY}"'
        return [",".join(cells), *lines[1:], f'"{NASTY}\n2",images/none.png,p,brain,home,d,0\n']

    rewrite_manifest(embedcache.open(encoded), edit)
    answers = [
        command("extract", "-m", "pixels"),
        command("manifest", "check"),
        command("status"),
        command("sql", "SELECT image_id, label FROM images"),
        command("probe", "-m", "pixels", "--no-controls", "--folds", "3"),
        command("folds"),
        command("compare", "--by", "class"),
        command("export", "-m", "pixels", "-o", "x.npy", "--label", NASTY),
    ]
    for answer in answers:
        assert not set(answer.out + answer.err) & set("\x1b\x07\r\u202e")
    assert answers[-1].err.count("\n") == 1
    rows = command("sql", "SELECT label FROM images", "--json").out
    assert NASTY in {row["label"] for row in json.loads(rows)}


def test_bytes_that_are_not_utf_8_are_refused_in_one_line(encoded, command):
    strange = os.fsdecode(b"x\xffy")
    for arguments in (
        ("sql", f"SELECT '{strange}'"),
        ("export", "-m", "pixels", "-o", "x.npy", "--where", f"label = '{strange}'"),
        ("status", "--store", strange),
        ("extract", "-m", "pixels", "--store", strange),
        ("manifest", "folder", "--root", "images", "--patient", "x", "--cohort", strange),
        ("probe", "-m", "pixels", "--label", strange),
    ):
        answer = command(*arguments)
        assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
        assert not (encoded / strange).exists()
