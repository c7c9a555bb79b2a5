"""Results as tables: in a terminal, in a notebook, and as frames."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pyarrow as pa
import pytest

from embedcache.data.tabular import Tabular, TabularSequence, html_table, text_table
from embedcache.errors import MissingExtraError


@dataclass(frozen=True, slots=True, repr=False)
class Scores(TabularSequence[float]):
    values: tuple[float, ...]

    def _items(self):
        return self.values

    def table(self):
        names = [f"<{number}>" for number in range(len(self.values))]
        return pa.table({"name": pa.array(names, pa.string()), "score": pa.array(self.values)})


def test_a_result_prints_as_a_table():
    assert repr(Scores((0.5, 0.25))) == "name  score\n----  -----\n<0>   0.500\n<1>   0.250"
    assert repr(Scores(())) == "name  score\n----  -----"


def test_a_notebook_shows_a_table_whose_texts_are_escaped():
    page = Scores((0.5,))._repr_html_()
    assert page.startswith("<table><thead><tr><th>name</th><th>score</th></tr></thead>")
    assert "<td>&lt;0&gt;</td>" in page
    assert '<td style="text-align: right">0.500</td>' in page


def test_a_result_of_several_things_is_their_sequence():
    scores = Scores((0.5, 0.25, 0.125))
    assert list(scores) == [0.5, 0.25, 0.125]
    assert (len(scores), scores[0], scores[-1], scores[1:]) == (3, 0.5, 0.125, (0.25, 0.125))
    assert 0.25 in scores
    assert scores == Scores((0.5, 0.25, 0.125))
    assert isinstance(scores, Tabular)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_frame_of_a_package_that_is_missing_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtraError, match=f"a frame of {name} needs {name}; run `pip install {name}`"
    ):
        getattr(Scores((0.5,)), f"to_{name}")()


def test_a_frame_is_made_of_the_table(monkeypatch):
    frames = SimpleNamespace(from_arrow=lambda table: ("frame", table))
    monkeypatch.setitem(sys.modules, "polars", frames)
    kind, table = Scores((0.5,)).to_polars()
    assert kind == "frame"
    assert table.to_pydict() == {"name": ["<0>"], "score": [0.5]}


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_real_frame_has_the_rows_of_the_table(name):
    pytest.importorskip(name)
    frame = getattr(Scores((0.5, 0.25)), f"to_{name}")()
    assert list(frame.columns) == ["name", "score"]
    assert list(frame["score"]) == [0.5, 0.25]


def test_numbers_stand_to_the_right_and_small_and_large_ones_in_powers():
    rows = [("a", 1, 1.5e-7), ("bb", None, 123456.0)]
    assert text_table(("n", "count", "x"), rows).splitlines() == [
        "n   count          x",
        "--  -----  ---------",
        "a       1    1.5e-07",
        "bb         1.235e+05",
    ]
    assert html_table(("x",), [(None,)]).count("<td") == 1
