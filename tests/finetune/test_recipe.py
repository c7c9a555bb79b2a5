"""The recipe of a training: defaults, changes, and what is refused."""

from __future__ import annotations

import pytest

from embedcache.errors import RunError
from embedcache.finetune.recipe import Recipe, parse_changes, read_recipe, recipe_text


def test_every_key_of_the_recipe_has_a_default_and_says_what_it_is():
    lines = [line for line in recipe_text().splitlines() if "=" in line.split("#")[0]]
    assert len(lines) == len(Recipe.__dataclass_fields__)
    assert all("#" in line for line in lines)


def test_a_file_changes_some_keys_and_a_key_by_itself_comes_last(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 7\nlr = 1\n")
    made = read_recipe(file, parse_changes(["lr=0.5", "class_weights=none"]))
    assert (made.epochs, made.lr, made.class_weights) == (7, 0.5, "none")
    assert made.batch_size == read_recipe().batch_size


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("lrr=1", "--set: no recipe key 'lrr'; did you mean 'lr'?"),
        ("nonsense=1", "--set: no recipe key 'nonsense'; `--show-config` prints them all"),
        ("epochs=1.5", "--set: epochs = 1.5; expected of type int"),
        ("epochs=0", "--set: epochs = 0; expected from 1 to"),
        ("validation=0.9", "--set: validation = 0.9; expected from 0.01 to 0.5"),
        ("scale=1", "--set: scale = 1.0; expected from 0 to 0.99"),
        ("lr=nan", "--set: lr = nan; expected from 0 to"),
        ("precision=tf32", "--set: precision = 'tf32'; expected auto or fp32 or bf16 or fp16"),
        ("epochs", "--set epochs: expected KEY=VALUE"),
    ],
)
def test_a_wrong_key_says_what_is_right(pair, message):
    with pytest.raises(RunError) as caught:
        read_recipe(None, parse_changes([pair]))
    assert str(caught.value).startswith(message)


def test_a_wrong_recipe_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"absent.toml: No such file or directory; expected a TOML"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("lr = = 1")
    with pytest.raises(RunError, match=r"bad.toml: not TOML"):
        read_recipe(tmp_path / "bad.toml")
