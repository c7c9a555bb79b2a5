"""Any bytes at all are a manifest, or are refused in one line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_properties import steady

from embedcache.data.manifest import REQUIRED, decode_text, image_paths, parse_manifest
from embedcache.errors import ManifestError

CELLS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    [*REQUIRED, "sha256", "a", "../x", "/etc/x", "x.dcm#1", "\\", '"', "nan", "1e999", "0" * 64]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def tables(draw):
    """Draw the bytes of something like a manifest."""
    header = draw(st.permutations([*REQUIRED, *draw(st.lists(CELLS, max_size=2))]))
    rows = draw(st.lists(st.lists(CELLS, min_size=5, max_size=7), max_size=4))
    lines = [",".join(f'"{c}"' if draw(st.booleans()) else c for c in row) for row in rows]
    return draw(ENDS).join([",".join(header), *lines]).encode() + draw(st.binary(max_size=3))


@given(st.binary(max_size=200) | tables())
@steady(200)
def test_any_bytes_are_a_manifest_or_are_refused_in_one_line(data):
    file = Path("/project/m.csv")
    try:
        manifest = parse_manifest(decode_text(data, file), file)
        paths = image_paths(manifest, file.parent)
    except ManifestError as error:
        message = str(error)
    else:
        message = ""
        assert len(manifest.table()) == len(manifest) == len(paths)
        assert all(path.startswith("/project/") for path in paths)
    assert len(message.splitlines()) <= 1
