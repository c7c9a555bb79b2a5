"""The command, in this process: what it prints, and the exit code of all that can go wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import IN_BACKGROUND, IN_FOREGROUND, PATIENCE, Printed
from embedcache_cli import main as cli_main
from embedcache_cli.main import VERBS
from embedcache_cli.output import bytes_text, seconds_text
from PIL import Image

import embedcache
from embedcache import errors
from embedcache.data.tabular import text_table
from embedcache.store import layout
from embedcache.testing import write_cohort
from embedcache.verbs.session import Session


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_cohort(tmp_path, cohorts=("home", "abroad"))
    return tmp_path


@pytest.fixture
def encoded(cohort: Path) -> Path:
    embedcache.open(cohort).extract("pixels")
    return cohort


def test_the_words_of_the_mission_work_in_a_folder_with_a_manifest(cohort, command):
    result = command("extract", "--model", "pixels", "--device", "cpu")
    assert result.code == 0
    assert ": 132 images = 0 cached + 132 encoded + 0 failed" in result.out
    assert "took " in result.out
    assert "waiting for images" in result.out
    assert (cohort / ".embedcache" / "catalog.duckdb").exists()
    again = command("extract", "-m", "pixels")
    assert again.code == 0
    assert "132 cached + 0 encoded + 0 failed" in again.out


def test_one_broken_png_costs_one_row_and_exit_3(cohort, command):
    files = sorted((cohort / "images").iterdir())
    files[7].write_bytes(files[7].read_bytes()[:70])
    result = command("extract", "-m", "pixels")
    assert result.code == 3
    assert "131 encoded + 1 failed" in result.out
    assert f"  failed: {files[7].stem}: cannot be decoded" in result.out
    assert command("extract", "-m", "pixels").code == 3  # it is still broken, and still result
    assert command("status").code == 3
    assert command("extract", "-m", "pixels", "--on-error", "fail", "--retry-failed").code == 1


def test_many_failures_are_counted_and_v_lists_them_all(cohort, command):
    for file in sorted((cohort / "images").iterdir())[:15]:
        file.write_bytes(b"no")
    result = command("extract", "-m", "pixels")
    assert result.out.count("  failed: ") == 10
    assert "... and 5 more; -v lists them all" in result.out
    assert command("extract", "-m", "pixels", "-v").out.count("  failed: ") == 15


def test_json_is_one_document_on_stdout_and_nothing_else(encoded, command):
    for arguments in (
        ["extract", "-m", "pixels"],
        ["extract", "-m", "pixels", "--dry-run"],
        ["status"],
        ["verify"],
        ["folds"],
        ["gc"],
        ["encoders"],
        ["encoders", "show", "pixels"],
        ["probe", "-m", "pixels"],
        ["manifest", "check"],
        ["sql", "FROM patients"],
    ):
        result = command(*arguments, "--json")
        assert result.code == 0, (arguments, result.err)
        json.loads(result.out)


@pytest.mark.parametrize("mode", ["plain", "jsonl", "off", "bar"])
def test_progress_goes_to_stderr(cohort, command, mode):
    result = command("extract", "-m", "pixels", "--progress", mode)
    assert "images/s" not in result.out
    if mode == "plain":
        assert "132/132 images" in result.err
        assert "slowest: " in result.err
    if mode == "jsonl":
        line = json.loads(result.err.splitlines()[0])
        assert line["n_done"] == line["n_total"] == 132
        assert {"rate", "eta_s", "slowest", "n_failed"} <= set(line)
    if mode == "bar":
        assert "132/132" in result.err
        assert "ETA" in result.err


def test_a_dry_run_says_hits_and_misses_and_changes_nothing(cohort, command):
    result = command("extract", "-m", "pixels", "--dry-run")
    assert result.code == 0
    assert "132" in result.out
    assert "unknown" in result.out
    assert not (cohort / ".embedcache").exists()


def test_the_table_of_a_probe_has_its_intervals_and_says_what_stands_behind_it(encoded, command):
    result = command("probe", "-m", "pixels")
    assert result.code == 0, result.err
    assert "macro F1 [95 % interval over patients]" in result.out
    assert "abroad, own classes only" in result.out
    assert "home: 12 patients, 72 images, tested out of fold" in result.out
    assert "abroad: 10 patients, 60 images, external" in result.out
    assert "run: .embedcache/runs/probe-pixels-" in result.out
    assert "cached" in command("probe", "-m", "pixels").out


def test_rare_classes_are_said_on_stderr_unless_quiet(encoded, command):
    rare = ("probe", "-m", "pixels", "--where", "label <> 'femur' OR patient_id < 'home-003'")
    assert "note: class 'femur' has" in command(*rare).err
    assert command(*rare, "-q").err == ""


def test_folds_show_counts_and_the_patients_are_in_sql(encoded, command):
    result = command("folds", "--folds", "4")
    assert result.code == 0
    assert result.out.splitlines()[0].split() == [
        "fold", "patients", "images", "abdomen", "brain", "femur",
    ]  # fmt: skip
    assert "12" in command("sql", "SELECT count(*) AS n FROM folds").out


@pytest.mark.parametrize("kind", ["table", "csv", "json", "parquet"])
def test_sql_in_every_format(encoded, command, kind, tmp_path):
    query = "SELECT label, count(*) AS n, MAP {'a': 1.5} AS m FROM images GROUP BY label ORDER BY 1"
    target = tmp_path / f"out.{kind if kind != 'table' else 'txt'}"
    result = command("sql", query, "-o", target, "--format", kind)
    assert result.code == 0, result.err
    assert f"{target.name}: 3 rows" in result.err
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(target.read_text())))
        assert rows[0] == {"label": "abdomen", "n": "54", "m": '{"a": 1.5}'}
    elif kind == "json":
        assert json.loads(target.read_text())[0] == {"label": "abdomen", "n": 54, "m": {"a": 1.5}}
    elif kind == "parquet":
        assert pq.read_table(target)["n"].to_pylist()[0] == 54
    else:
        assert target.read_text().splitlines()[2].split()[:2] == ["abdomen", "54"]


def test_whole_sums_stay_whole_and_what_is_not_finite_is_null(encoded, command):
    query = "SELECT sum(frame) AS n, 'inf'::DOUBLE AS x, [1.5, 'nan'::DOUBLE] AS l FROM images"
    assert json.loads(command("sql", query, "--json").out) == [
        {"n": 132, "x": None, "l": [1.5, None]}
    ]
    assert command("sql", query, "--format", "csv").out == 'n,x,l\n132,,"[1.5, null]"\n'
    assert command("sql", "SELECT sum(frame) AS n FROM images").out.split() == ["n", "---", "132"]


@pytest.mark.parametrize("kind", ["table", "csv", "json", "parquet"])
def test_columns_of_one_name_are_told_apart_as_duckdb_does(encoded, command, tmp_path, kind):
    result = command("sql", "SELECT 1 a, 2 a, 3 A, 4 a_1", "--format", kind, "-o", "out")
    assert result.code == 0, result.err
    row = {"a": 1, "a_1": 2, "A_2": 3, "a_1_1": 4}
    if kind == "parquet":
        assert pq.read_table(tmp_path / "out").to_pylist() == [row]
    elif kind == "json":
        assert json.loads((tmp_path / "out").read_text()) == [row]
    else:
        assert re.findall(r"\w+", (tmp_path / "out").read_text())[:4] == list(row)
    both = "SELECT * FROM images JOIN embedding_rows USING (image_id)"
    assert command("sql", both, "--format", kind).code == 0


def test_a_pipe_is_written_into_and_not_replaced(encoded, command, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    few = ("--where", "frame = 0 AND label = 'brain'", "--format", "parquet")
    for arguments, start in (
        (("sql", "SELECT 1 AS a", "--json"), b"["),
        (("export", "-m", "pixels", *few), b"PAR1"),
    ):
        result = command(*arguments, "-o", "pipe")
        assert (result.code, result.out) == (0, "")
        assert (tmp_path / "pipe").is_fifo()
        assert os.read(reader, 1 << 16).startswith(start)
    os.close(reader)
    result = command("sql", "SELECT 1", "-o", "images")
    assert (result.code, "images: a folder; name a file" in result.err) == (1, True)


def test_names_beside_a_matrix_never_replace_the_manifest(encoded, command):
    before = (encoded / "data_manifest.csv").read_bytes()
    result = command("export", "-m", "pixels", "-o", "data_manifest.npy")
    assert result.out.split() == ["data_manifest.npy", "data_manifest.rows.csv"]
    assert (encoded / "data_manifest.csv").read_bytes() == before


def test_a_score_of_one_patient_has_no_interval(encoded, command):
    where = "cohort = 'home' OR patient_id = 'abroad-000'"
    result = command("probe", "-m", "pixels", "--where", where)
    assert result.code == 0, result.err
    assert re.search(r"\d\.\d{3} \[n/a\]", result.out)
    rows = command("sql", "SELECT DISTINCT low::VARCHAR AS l FROM metrics WHERE n_patients = 1").out
    assert rows.split() == ["l", "---", "nan"]


def test_sql_reads_a_query_from_stdin(encoded, command, monkeypatch):
    def ask(data: bytes) -> Printed:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        return command("sql", "-")

    assert "42" in ask(b"SELECT 41 + 1 AS answer").out
    assert "Zo\u00eb" in ask("SELECT 'Zo\u00eb'".encode()).out
    assert ask(b"SELECT '\xff'").err == "embedcache: stdin: byte 0xff at 8 is not UTF-8\n"


def test_verify_names_the_damage_with_exit_4_and_repair_mends_it(encoded, command):
    (store,) = Session(embedcache.open(encoded).workspace).stores()
    chunk = Path(layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0")
    data = bytearray(chunk.read_bytes())
    data[3000] ^= 1
    chunk.write_bytes(data)
    result = command("verify")
    assert result.code == 4
    assert "damaged: .embedcache/encoders/pixels-" in result.out
    assert "c/0/0 does not match its checksum" in result.out
    assert "1 images lost with it: " in result.out
    assert "132 rows of 1 encoders checked: 1 file damaged; mend with --repair" in result.out
    read = command("export", "-m", "pixels", "-o", "x.npy")
    assert read.code == 4
    assert "does not match its checksum" in read.err
    mended = command("verify", "--repair")
    assert mended.code == 0
    assert "1 images = 0 cached + 1 encoded + 0 failed" in mended.out
    assert command("verify").out == "132 rows of 1 encoders checked: sound\n"


def test_manifest_check_says_what_is_wrong_with_its_own_exit_codes(cohort, command):
    assert command("manifest", "check").code == 0
    files = sorted((cohort / "images").iterdir())
    first, second, third = files[:3]
    second.write_bytes(b"no image")
    third.unlink()
    result = command("manifest", "check")
    assert result.code == 3
    assert "missing: 1 images are not on disk, first" in result.out
    assert "unreadable: 1 images cannot be read (not an image), first" in result.out
    files[-1].write_bytes(first.read_bytes())
    leaking = command("manifest", "check")
    assert leaking.code == 5
    assert "bytes-under-two-patients: 2 images are byte-identical" in leaking.out
    assert "bytes-under-two-labels" in leaking.out


def test_manifest_check_agrees_with_extract_on_a_truncated_picture(cohort, command):
    file = next((cohort / "images").iterdir())
    Image.effect_noise((80, 80), 50).save(file, "JPEG")  # whatever its name says
    file.write_bytes(file.read_bytes()[:-200])
    result = command("manifest", "check")
    assert result.code == 3
    assert "unreadable: 1 images cannot be read (cannot be decoded: " in result.out
    assert command("extract", "-m", "pixels").code == 3


def test_manifest_check_finds_changed_files_and_misspelt_labels(cohort, command):
    manifest = cohort / "data_manifest.csv"
    lines = manifest.read_text().splitlines()
    lines = [lines[0] + ",sha256", *(line + "," + "0" * 64 for line in lines[1:])]
    lines[1] = lines[1].replace(",abdomen,", ",Abdomen ,")
    manifest.write_text("\n".join(lines))
    result = command("manifest", "check")
    assert result.code == 3
    assert "changed: 132 images differ from the manifest's sha256" in result.out
    assert "differ in spelling only ('Abdomen', 'abdomen')" in result.out


def test_a_folder_becomes_a_manifest(tmp_path, command):
    write_cohort(tmp_path / "raw")
    for file in (tmp_path / "raw" / "images").iterdir():
        label = file.stem.split("_")[1]
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "set" / label / file.name)
    result = command("manifest", "folder", "--root", "set", "--patient", r"(home-\d+)")
    assert result.code == 0, result.err
    first, _, _, *classes = result.out.splitlines()
    assert first == "data_manifest.csv: 72 images, 12 patients, cohorts: set"
    assert [line.split() for line in classes] == [
        ["set", label, "24", "8"] for label in ("abdomen", "brain", "femur")
    ]
    assert command("extract", "-m", "pixels").code == 0
    other = ("manifest", "folder", "--root", "set", "--patient", r"(home-\d+)", "--cohort", "x")
    result = command(*other)
    assert result.code == 1
    assert result.err.startswith(
        "embedcache: data_manifest.csv is there already and holds something"
    )
    assert command(*other, "--overwrite").code == 0


def test_the_adapters_of_the_published_data_sets(tmp_path, command):
    (tmp_path / "FETAL_PLANES_DB_data.csv").write_text(
        "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
        + "".join(
            f"Patient{n:05d}_Plane1_1_of_1;{n};Other;Not A Brain;Other;Aloka;1 \n"
            for n in range(1, 9)
        )
    )
    assert command("manifest", "fetal-planes", "--root", ".").code == 1
    result = command("manifest", "fetal-planes", "--root", ".", "--allow-missing")
    assert result.code == 3
    assert "data_manifest.csv: 8 images, 8 patients, cohorts: spain" in result.out
    assert "8 images are not on disk:" in result.err
    assert "... and 3 more; --json lists them all" in result.err
    (tmp_path / "African_planes_database.csv").write_text(
        "Patient_num,Plane,Train,Center,Filename\n1,Fetal brain,0,Ghana,patient001_GHA_plane0\n"
    )
    both = command(
        "manifest", "african-planes", "--root", ".", "--append", "--allow-missing", "--json"
    )
    assert json.loads(both.out)["cohorts"] == ["africa", "spain"]


BAD_INPUTS = [
    # arguments, exit code, a part of the one line on stderr
    (["extract", "-m", "nothing"], 1, "no encoder 'nothing'; registered: usfm, usfm:cls"),
    (["extract", "-m", "sononet16"], 6, "weights of 'sononet16' are not registered"),
    (["extract", "-m", "sononet16", "--weights", "nowhere"], 6, "nowhere: no such weights file"),
    (["extract", "-m", "resnet50", "--offline"], 6, "'resnet50'"),
    (["extract", "-m", "pixels", "--device", "tpu"], 1, "no device 'tpu'; expected auto, cpu"),
    (["extract", "-m", "pixels", "--manifest", "no.csv"], 1, "no.csv: no such manifest"),
    (["probe", "-m", "pixels", "--label", "x"], 1, "no column 'x' in the manifest"),
    (["probe", "-m", "pixels", "--where", "x = 1"], 1, "--where 'x = 1'"),
    (["probe", "-m", "pixels", "--external", "mars"], 1, "no cohort 'mars'"),
    (["probe", "-m", "pixels", "--class-map", "no.csv"], 1, "no.csv: no class map: No such file"),
    (["probe", "-m", "pixels", "--folds", "no.csv"], 1, "no.csv: no fold table: No such file"),
    (["probe", "-m", "pixels", "--folds", "500"], 1, "12 patients cannot be split into 500 folds"),
    (["probe", "-m", "pixels", "--folds", "2"], 1, "2 folds leave none to choose C on"),
    (["probe", "-m", "resnet50"], 1, "no embeddings of 'resnet50'"),
    (["export", "-m", "pixels", "-o", "x.xyz"], 1, "no format 'xyz'"),
    (["export", "-m", "pixels", "-o", "no/such/place/x.npy", "--where", "1 = 2 AND"], 1, "--where"),
    (["sql", "DROP TABLE images"], 1, "DROP is refused, SQL is read-only here"),
    (["sql", "SELECT x FROM images"], 1, "Binder Error"),
    (["weights", "add", "sononet16", "nowhere"], 6, "no such weights file"),
    (["weights", "add", "sononet16", "data_manifest.csv"], 6, "cannot be read as a checkpoint"),
    (["manifest", "folder", "--root", "no", "--patient", "x"], 1, "no: no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), BAD_INPUTS)
def test_bad_input_is_one_line_and_its_exit_code(encoded, command, arguments, code, message):
    result = command(*arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.startswith("embedcache: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["extract"],
        ["extract", "-m", "pixels", "--batch-size", "0"],
        ["extract", "-m", "pixels", "--workers", "many"],
        ["extract", "-m", "pixels", "--shard", "3/2"],
        ["extract", "-m", "pixels", "--precision", "int8"],
        ["extract", "-m", "pixels", "--no-such-option"],
        ["sql"],
        ["probe", "-m", "pixels", "--resamples", "3"],
        ["gc", "--grace", "-1"],
    ],
)
def test_wrong_usage_is_exit_2(encoded, command, arguments):
    result = command(*arguments)
    assert result.code == 2
    assert "Usage" in result.err or "Error" in result.err


def test_a_leaking_patient_is_exit_5(encoded, command):
    manifest = encoded / "data_manifest.csv"
    manifest.write_text(manifest.read_text().replace(",abroad-003,", ",home-003,"))
    result = command("probe", "-m", "pixels")
    assert result.code == 5
    assert "1 patients are in the training cohort" in result.err
    assert not re.search("home-003(?!_)", result.err)  # images are named by their own ids
    query = re.search('embedcache sql "(.*)" lists them', result.err)[1]
    assert command("sql", "--format", "csv", query).out == "patient_id\nhome-003\n"


def test_a_manifest_that_reaches_outside_is_refused(encoded, command):
    manifest = encoded / "data_manifest.csv"
    manifest.write_text(manifest.read_text().replace("images/", "../images/", 1))
    result = command("extract", "-m", "pixels")
    assert result.code == 1
    assert "is outside" in result.err


def test_snake_case_and_environment_variables_are_taken(encoded, command, monkeypatch):
    assert (
        command("probe", "-m", "pixels", "--train_cohort", "home", "--class-map=", "-q").code != 2
    )
    monkeypatch.setenv("EMBEDCACHE_MODEL", "pixels")
    monkeypatch.setenv("EMBEDCACHE_STORE", str(encoded / "elsewhere"))
    assert command("extract").code == 0
    assert (encoded / "elsewhere" / "encoders").is_dir()


def test_help_of_every_verb_names_its_options(command):
    assert command("--help").code == 0
    for verb in VERBS:
        result = command(verb, "--help")
        assert result.code == 0
        assert "Usage: embedcache " + verb in result.out
    assert command("--version").out == f"embedcache, version {embedcache.__version__}\n"


def test_every_error_has_an_exit_code():
    def kinds(kind):
        return [kind, *(one for sub in kind.__subclasses__() for one in kinds(sub))]

    for kind in kinds(errors.EmbedcacheError):
        assert any(issubclass(kind, listed) for listed, _ in cli_main.EXIT_CODES)
    assert dict(cli_main.EXIT_CODES)[errors.StoreCorruptError] == 4
    assert dict(cli_main.EXIT_CODES)[errors.LeakageError] == 5
    assert dict(cli_main.EXIT_CODES)[errors.EncoderWeightsError] == 6


def run_process(
    folder: Path, *arguments: str, first: str = IN_FOREGROUND, **settings
) -> subprocess.Popen:
    code = f"{first}from embedcache_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
    )  # fmt: skip


# It stops after 280 images, in the second commit, and waits until it is told to go on.
WAITING_ENCODER = """
import time
from pathlib import Path
from embedcache.encoders.pixels import PixelsEncoder
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import EncoderSpec, WeightsSource, identity_of

SPEC = EncoderSpec(
    name="waiting", architecture="waiting", output="values", dim=4,
    preprocess=Preprocess(
        height=2, width=2, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
    ),
    weights=WeightsSource(kind="none", licence="MIT", commercial=True),
    loader=__name__ + ":load",
)

class Waiting(PixelsEncoder):
    n_encoded = 0

    def encode(self, batch):
        if self.n_encoded == 280:
            Path("waits").touch()
            while not Path("go-on").exists():
                time.sleep(0.01)
        self.n_encoded += len(batch)
        return super().encode(batch)

def load(found, device):
    return Waiting(found.spec, identity_of(found.spec, "none", found.precision))
"""
EXTRACT_WAITING = ("extract", "-m", "waiting", "--encoder-file", "waiting.py", "-b", "1")


def start_and_wait(folder: Path, *arguments: str, **settings) -> subprocess.Popen:
    """Start a pass over 300 images, and return once it stands still."""
    write_cohort(folder, n_patients=50, n_images=3)
    (folder / "waiting.py").write_text(WAITING_ENCODER)
    process = run_process(folder, *EXTRACT_WAITING, *arguments, **settings)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "waits").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pass_flushes_says_so_and_goes_on(tmp_path, number, code):
    process = start_and_wait(tmp_path, "--progress", "jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "interrupted; what was finished is kept, run it again to go on" in err
    assert embedcache.open(tmp_path).status().encoders[0].n_held == 280
    out, _ = run_process(tmp_path, *EXTRACT_WAITING).communicate(timeout=PATIENCE)
    assert "280 cached + 20 encoded + 0 failed" in out


def test_a_job_in_the_background_takes_no_notice_of_ctrl_c(tmp_path):
    """A shell starts it with SIGINT ignored: Ctrl-C is meant for the job in the foreground."""
    process = start_and_wait(tmp_path, first=IN_BACKGROUND)
    process.send_signal(signal.SIGINT)
    (tmp_path / "go-on").touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "0 cached + 300 encoded + 0 failed" in out


def test_output_that_nobody_reads_is_no_error(encoded):
    process = run_process(encoded, "sql", "FROM images, range(300)")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(PATIENCE) == 0
    assert err == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize(
    "arguments",
    [("status",), ("sql", "FROM images, range(300)"), ("sql", "SELECT 1"), ("--help",)],
    ids=str,
)
def test_output_onto_a_full_disk_is_one_line_and_exit_1(encoded, arguments):
    code = f"{IN_FOREGROUND}from embedcache_cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=encoded, text=True, stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    line = "embedcache: the output cannot be written: No space left on device\n"
    assert result.stderr == line


def test_tables_align_and_cut_nothing():
    table = text_table(("name", "n"), [("a" * 200, 1), ("b", 1000), (None, None)])
    assert table.splitlines()[2].startswith("a" * 200)
    assert table.splitlines()[3].endswith("1000")
    assert text_table(("empty",), []) == "empty\n-----"


def test_numbers_for_people():
    assert [bytes_text(n) for n in (5, 1500, 2.5e9, 3e15)] == [
        "5 B",
        "1.5 kB",
        "2.5 GB",
        "3000.0 TB",
    ]
    assert [seconds_text(s) for s in (1.25, 125, 7300)] == ["1.2 s", "2 min 05 s", "2 h 01 min"]


def test_only_the_variables_of_this_project_are_read(monkeypatch, encoded, command):
    monkeypatch.setenv("MODEL", "nonsense")
    assert command("status").code == 0
    assert os.environ["MODEL"] == "nonsense"
