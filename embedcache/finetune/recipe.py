"""The recipe: every number of a training, from one file with its source."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, get_args

from embedcache.encoders.choices import PrecisionChoice
from embedcache.errors import RunError
from embedcache.files.regular import read_regular

ClassWeights = Literal["balanced", "none"]
RecipeValue = str | int | float | bool

# By name, for annotations are texts at run time; see `from __future__` above.
_KINDS: Final[dict[str, type]] = {"int": int, "float": float, "bool": bool, "str": str}
_AT_LEAST: Final = {
    "validation": 0.01,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "lora_rank": 1,
}
# Numbers that are not named here are at least 0.
_MOST: Final = 1e9
_AT_MOST: Final = {
    "validation": 0.5,
    "layer_decay": 1.0,
    "warmup": 1.0,
    "ema": 1.0,
    "label_smoothing": 1.0,
    "drop_path": 1.0,
    "flip": 1.0,
    "rotation": 180.0,
    "translation": 1.0,
    "scale": 0.99,
    "brightness": 1.0,
    "contrast": 1.0,
    "gamma": 1.0,
    "lora_dropout": 1.0,
}
_CHOICES: Final = {
    "class_weights": get_args(ClassWeights),
    "precision": get_args(PrecisionChoice),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every number of a training; `recipe.toml` gives meaning, default and source of each key."""

    epochs: int
    batch_size: int
    accumulate: int
    validation: float
    lr: float
    layer_decay: float
    head_lr: float
    weight_decay: float
    warmup: float
    clip_norm: float
    ema: float
    class_weights: ClassWeights
    label_smoothing: float
    precision: PrecisionChoice
    gradient_checkpointing: bool
    drop_path: float
    flip: float
    rotation: float
    translation: float
    scale: float
    brightness: float
    contrast: float
    gamma: float
    speckle: float
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_lr: float


def recipe_text() -> str:
    """Return the file of the defaults."""
    return files("embedcache.finetune").joinpath("recipe.toml").read_text(encoding="utf-8")


def read_recipe(
    file: Path | None = None, changes: Mapping[str, RecipeValue] | None = None
) -> Recipe:
    """Return the defaults, changed by a TOML file and by single keys.

    Parameters
    ----------
    file
        TOML file of recipe keys; None: the defaults alone.
    changes
        Values of single keys; they come last.

    Raises
    ------
    RunError
        No such file, no such key, or a value out of its range; names the key.
    """
    keys = tomllib.loads(recipe_text())
    if file is not None:
        keys |= _checked(_read(file), str(file))
    return Recipe(**(keys | _checked(changes or {}, "--set")))


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the keys and values of 'KEY=VALUE'; values are TOML, or text without quotes.

    Raises
    ------
    RunError
        A text has no '='.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise RunError(f"--set {pair}: expected KEY=VALUE, e.g. lr=1e-4")
        try:
            # As TOML, so that a value means the same here and in a file.
            changes[key.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value.strip()
    return changes


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(file).decode())
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}; expected a TOML file of recipe keys") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: not TOML: {error}") from None


def _checked(keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    kinds = {field.name: str(field.type) for field in fields(Recipe)}
    checked = {}
    for key, value in keys.items():
        plain = key.replace("-", "_")
        if plain not in kinds:
            near = difflib.get_close_matches(plain, kinds, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "`--show-config` prints them all"
            raise RunError(f"{source}: no recipe key '{key}'; {hint}")
        checked[plain] = _value(plain, value, _KINDS.get(kinds[plain], str), source)
    return checked


def _value(key: str, value: Any, kind: type, source: str) -> Any:
    # In Python True is an integer; in a recipe it is no number.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    low, high = _AT_LEAST.get(key, 0), _AT_MOST.get(key, _MOST)
    is_number = kind in {int, float}
    rules: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: type(value) is kind, f"of type {kind.__name__}"),
        (lambda: not is_number or low <= value <= high, f"from {low} to {high:g}"),
        (lambda: value in _CHOICES.get(key, (value,)), " or ".join(_CHOICES.get(key, ()))),
    )
    for holds, wanted in rules:
        if not holds():
            raise RunError(f"{source}: {key} = {value!r}; expected {wanted}")
    return value
