from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.data.manifest import image_paths, read_manifest, write_manifest
from embedcache.errors import ManifestError

HEADER = "image_id,path,patient_id,label,cohort"


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "data_manifest.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_reads_required_and_other_columns_in_file_order(tmp_path):
    file = write(tmp_path, f"{HEADER},note\nb,x/b.png,P2,brain,es,hello\na,a.png,P1,,es,\n")
    manifest = read_manifest(file)
    assert len(manifest) == 2
    assert manifest.column("image_id") == ("b", "a")
    assert manifest.column("label") == ("brain", "")
    assert manifest.column("note") == ("hello", "")


def test_accepts_a_byte_order_mark_windows_lines_quotes_and_blank_lines(tmp_path):
    file = write(tmp_path, b"\xef\xbb\xbf" + f'{HEADER}\r\n\r\na,"x,1.png",P,l,c\r\n'.encode())
    assert read_manifest(file).column("path") == ("x,1.png",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: no column 'image_id'; found nothing"),
        ("image_id,path,patient_id,label\na,b,c,d\n", "1: no column 'cohort'"),
        ("image_id;path;patient_id;label;cohort\n", "it looks ';'-separated"),
        (f"{HEADER},label\na,b,c,d,e,f\n", "1: column 'label' twice"),
        (f"{HEADER},Label\n", "1: columns 'label' and 'Label' differ in case only"),
        (f"{HEADER},SHA256\n", "1: columns 'sha256' and 'SHA256' differ in case only"),
        (f"{HEADER}\n", "no rows below the header"),
        (f"{HEADER}\na,b.png,P,l\n", ":2: 4 cells, the header has 5"),
        (f"{HEADER}\na,b.png,P,l,c\n,b.png,P,l,c\n", ":3: column 'image_id' is empty"),
        (f"{HEADER}\na,b.png,,l,c\n", ":2: column 'patient_id' is empty"),
        (f"{HEADER}\na,,P,l,c\n", ":2: column 'path' is empty"),
        (f"{HEADER}\na,b.png,P,l,\n", ":2: column 'cohort' is empty"),
        (f"{HEADER}\na,b.png,P,l,c\nx,b.png,P,l,c\na,b.png,P,l,c\n", ":4: image_id 'a' again, f"),
        (f"{HEADER}\na,x\\b.png,P,l,c\n", ":2: path 'x.b.png' has a backslash"),
        (f"{HEADER},sha256\na,b.png,P,l,c,ABC\n", ":2: sha256 'ABC' is not 64"),
        (f"{HEADER}\na,b.png,P,l,c\n{HEADER}\n", ":3: the header again; expected it in line 1"),
        (f"{HEADER}\na,b.png,\u200b,l,c\n", ":2: column 'patient_id' is empty"),
        (
            "image_id,path,patient_id,label\u200b,cohort\n",
            "found .*, label.u200b, .*; rename 'label.u200b'",
        ),
        ("Image ID,path,patient_id,label,cohort\n", "no column 'image_id'.*; rename 'Image ID'"),
        (HEADER.replace(",", "\t"), "it looks '.t'-separated, expected ','"),
        (f"{HEADER},x\na,b.png,P,l,c,{'y' * 200_000}\n", ":2: field larger than field limit"),
        (f'{HEADER}\n"a\nb",x\\b.png,P,l,c\n', ":3: path 'x.b.png' has a backslash"),
        (b"image_id,path\n\xff,b\n", ":2: byte 0xff is not UTF-8"),
        (f'{HEADER}\na,"b.png,P,l,c\n', "unexpected end of data"),
    ],
)
def test_says_where_a_manifest_is_wrong(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message.replace("\\", ".")):
        read_manifest(write(tmp_path, text))


def test_names_a_missing_file_and_the_way_out(tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.csv: no such manifest.*manifest folder"):
        read_manifest(tmp_path / "nowhere.csv")


def test_names_the_columns_there_are_when_one_is_missing(tmp_path):
    manifest = read_manifest(write(tmp_path, f"{HEADER}\na,b.png,P,l,c\n"))
    with pytest.raises(ManifestError, match="no column 'device'; it has image_id, path"):
        manifest.column("device")


def test_types_numbers_but_keeps_codes_and_known_columns_as_text(tmp_path):
    file = write(
        tmp_path,
        f"{HEADER},age,weeks,code,split,empty\n"
        "1,a.png,007,3,c,31,20.5,01,1,\n"
        "2,b.png,008,4,c,,21,02,2,\n",
    )
    table = read_manifest(file).table()
    assert table["age"].to_pylist() == [31, None]
    assert table["weeks"].to_pylist() == [20.5, 21.0]
    assert table["code"].to_pylist() == ["01", "02"]
    assert table["split"].to_pylist() == ["1", "2"]
    assert table["image_id"].to_pylist() == ["1", "2"]
    assert table["patient_id"].to_pylist() == ["007", "008"]
    assert table["empty"].to_pylist() == [None, None]


def test_whole_numbers_that_their_type_would_merge_stay_text(tmp_path):
    cells = {
        "long": ("12345678901234567890", "12345678901234567891"),
        "mixed": ("9007199254740993", "0.5"),
        "endless": ("9" * 5000, "1"),
        "least": ("-9223372036854775808", "9223372036854775807"),
    }
    rows = "".join(
        f"{i},{i}.png,P,l,c,{','.join(row)}\n"
        for i, row in enumerate(zip(*cells.values(), strict=True))
    )
    table = read_manifest(write(tmp_path, f"{HEADER},{','.join(cells)}\n{rows}")).table()
    for name in ("long", "mixed", "endless"):
        assert table[name].to_pylist() == list(cells[name])
    assert table["least"].to_pylist() == [-(2**63), 2**63 - 1]


def test_accepts_carriage_returns_alone_and_long_cells(tmp_path):
    manifest = read_manifest(write(tmp_path, f"{HEADER},x\ra,b.png,P,l,c,{'y' * 100_000}\r"))
    assert len(manifest.column("x")[0]) == 100_000


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../b.png", "images/../../x"]
)
def test_refuses_paths_that_leave_the_data_root(tmp_path, path):
    manifest = read_manifest(write(tmp_path, f"{HEADER}\na,{path},P,l,c\n"))
    with pytest.raises(ManifestError, match="is outside .*--data-root"):
        image_paths(manifest, tmp_path)


def test_accepts_absolute_paths_and_harmless_dots_below_the_data_root(tmp_path):
    text = f"{HEADER}\na,{tmp_path}/x/1.png,P,l,c\nb,x/../y.png,P,l,c\nc,d..e.png,P,l,c\n"
    manifest = read_manifest(write(tmp_path, text))
    root = str(tmp_path)
    assert image_paths(manifest, tmp_path) == [
        f"{root}/x/1.png",
        f"{root}/y.png",
        f"{root}/d..e.png",
    ]


def test_a_sibling_folder_with_the_same_beginning_is_outside(tmp_path):
    manifest = read_manifest(write(tmp_path, f"{HEADER}\na,{tmp_path}-evil/1.png,P,l,c\n"))
    with pytest.raises(ManifestError, match="is outside"):
        image_paths(manifest, tmp_path)


def test_writes_what_it_reads(tmp_path):
    rows = [
        {"image_id": "ä,1", "path": "a b.png", "patient_id": "P", "label": 'x"y', "cohort": "c",
         "note": ""},
    ]  # fmt: skip
    manifest = write_manifest(tmp_path / "m.csv", rows)
    assert {name: cells[0] for name, cells in manifest.columns.items()} == rows[0]
    with pytest.raises(ManifestError, match="no images found"):
        write_manifest(tmp_path / "m.csv", [])


def test_a_nul_character_is_named_by_its_line(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("image_id,path,patient_id,label,cohort\na,x\0y.png,P,l,c\n")
    with pytest.raises(ManifestError, match=r"m\.csv:2: a NUL character; expected plain CSV"):
        read_manifest(file)
