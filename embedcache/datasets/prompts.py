"""Prompt files: classes, the labels they stand for, and their wordings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import yaml

from embedcache.errors import RunError
from embedcache.files.regular import read_regular

BUILTIN: Final = ("fetal-planes", "brain-planes", "template")


@dataclass(frozen=True, slots=True)
class PromptClass:
    """One class of a prompt set.

    Parameters
    ----------
    name
        Name of the class in the file.
    labels
        Labels of a manifest that mean this class; none where its name is the label.
    prompts
        Wordings of the class, complete sentences.
    """

    name: str
    labels: tuple[str, ...]
    prompts: tuple[str, ...]

    def label_in(self, present: Collection[str]) -> str:
        """Return the first of its labels that occurs, or its name."""
        return next((label for label in self.labels if label in present), self.name)


def prompts_text(source: str) -> str:
    """Return the text of a built-in prompt set or of a file.

    Raises
    ------
    RunError
        There is no such set or file, or it is not UTF-8.
    """
    if source in BUILTIN:
        return (
            files("embedcache.datasets")
            .joinpath("prompt_sets", f"{source}.yaml")
            .read_text("utf-8")
        )
    try:
        return read_regular(source).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RunError(
            f"{source}: {reason}; expected a YAML file of prompts, or one of {', '.join(BUILTIN)}"
        ) from None


def read_prompts(source: str) -> tuple[PromptClass, ...]:
    """Return the classes of a prompt set, in the order of the file.

    Parameters
    ----------
    source
        Name of a built-in set, or path of a YAML file like `prompt_sets/template.yaml`.

    Raises
    ------
    RunError
        Not such a file; names the class.
    """
    try:
        document = yaml.safe_load(prompts_text(source))
    except yaml.YAMLError as error:
        raise RunError(f"{source}: {' '.join(str(error).split())}") from None
    classes = document.get("classes") if isinstance(document, dict) else None
    if not isinstance(classes, dict) or len(classes) < 2:
        raise RunError(f"{source}: expected 'classes' with at least two of them")
    template = str(document.get("template", "{}"))
    if "{}" not in template:
        raise RunError(f"{source}: template {template!r} has no {{}} for the prompt")
    parsed = tuple(_class(source, str(name), facts, template) for name, facts in classes.items())
    labels = [label for entry in parsed for label in (entry.labels or (entry.name,))]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RunError(f"{source}: label '{twice[0]}' belongs to two classes")
    return parsed


def _class(source: str, name: str, facts: Any, template: str) -> PromptClass:
    facts = facts if isinstance(facts, dict) else {}
    labels, prompts = facts.get("labels") or [], facts.get("prompts") or []
    if not (isinstance(labels, list) and isinstance(prompts, list) and prompts):
        raise RunError(
            f"{source}: class '{name}' needs a list of prompts, and a list of labels if it has any"
        )
    return PromptClass(
        name=name,
        labels=tuple(map(str, labels)),
        prompts=tuple(template.replace("{}", str(prompt)) for prompt in prompts),
    )
