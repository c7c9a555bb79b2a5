"""Tests of names that differ in their spelling only, and of how such names are shown."""

from __future__ import annotations

import secrets
import unicodedata

import pytest

from embedcache.data.spelling import spelling_key, spelling_twins, spellings_text
from embedcache.visible import visible_text


@pytest.mark.parametrize(
    "spellings",
    [
        ("007", "7", "7.0"),
        ("p8", "P8", "p-8", "P_08", "P 8"),
        ("Zoë7", unicodedata.normalize("NFD", "Zoë7")),
        ("S1", "S1\u200b", "\ufeffS1", " S1 ", "S\u00ad1", "S1\ufe0f"),
        ("MWI-017", "MWI\u201117", "mwi 17"),
        ("P7", "\u04207", "\uff307"),  # Cyrillic, full width
        ("3", "\u0663"),  # an Arabic digit
        ("2020-01-05", "2020-1-5"),
        ("Fetal brain", "fetal_brain", "FetalBrain"),
        ("0", "00"),
    ],
)
def test_spellings_of_one_name_are_twins(spellings: tuple[str, ...]) -> None:
    assert spelling_twins(["other", *spellings, *spellings]) == [spellings]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1-1", "11"),
        ("1.5", "15"),
        ("-1", "1"),
        ("HER2+", "HER2-"),
        ("P 10", "P1 0"),
        ("P1", "P10"),
        ("A", "B"),
        ("2020-11-1", "2020-1-11"),
    ],
)
def test_different_names_are_no_twins(first: str, second: str) -> None:
    assert spelling_key(first) != spelling_key(second)


def test_pseudonyms_and_numbered_patients_raise_no_false_alarm() -> None:
    assert spelling_twins({secrets.token_hex(6) for _ in range(5000)}) == []
    assert spelling_twins(f"P{number}" for number in range(2000)) == []
    assert spelling_twins(["", "", "a"]) == []


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("p8", "P8"), "'p8', 'P8'"),
        (("S1", "S1\u200b"), r"'S1', 'S1\u200b'"),
        (("Zoë", unicodedata.normalize("NFD", "Zoë")), r"'Zo\xeb', 'Zoe\u0308'"),
        (("P7", "\u04207"), r"'P7', '\u04207'"),
        (("Zoë 1", "Zoë-1"), "'Zoë 1', 'Zoë-1'"),
    ],
)
def test_the_spellings_of_a_message_can_be_told_apart(names: tuple[str, ...], shown: str) -> None:
    assert spellings_text(names) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Zoë, 脳", "plain, Zoë, 脳"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\u202eb\u2066\u200f", r"a\u202eb\u2066\u200f"),
        ("\u2028\u0085", r"\u2028\x85"),
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_nothing_that_steers_a_terminal_is_shown_as_it_is(text: str, shown: str) -> None:
    assert visible_text(text) == shown
