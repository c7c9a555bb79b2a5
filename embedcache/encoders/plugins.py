"""Encoders of others: from installed distributions, and from a Python file of the user's.

A distribution names an `EncoderSpec` in the entry-point group `embedcache.encoders`, under the
encoder's own name. Listing them imports nothing; a plug-in is loaded when it is first asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Final

from embedcache.encoders.models import BUILTIN
from embedcache.encoders.spec import EncoderSpec
from embedcache.errors import EmbedcacheError, EncoderError, UnknownEncoderError
from embedcache.files.regular import read_regular

GROUP: Final = "embedcache.encoders"
_from_files: dict[str, EncoderSpec] = {}


@contextlib.contextmanager
def foreign_code(what: str, *, redirect: bool = True) -> Iterator[None]:
    """Run code of others: whatever it raises, or an exit from it, becomes an error of one line.

    Parameters
    ----------
    what
        First words of the error.
    redirect
        Whether what it prints goes to stderr; not beside other threads, whose stdout is the same.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr) if redirect else contextlib.nullcontext():
            yield
    except EmbedcacheError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign module raises
        raise EncoderError(f"{what}: {repr(error)[:300]}") from error


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Return the entry points of installed plug-ins by encoder name; loads none.

    Raises
    ------
    EncoderError
        Two distributions register one name, or one a name that is built in.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in points or point.name in BUILTIN:
            others = points[point.name].value if point.name in points else "embedcache"
            raise EncoderError(
                f"encoder '{point.name}' is registered twice, by {others} and by {point.value}; "
                "uninstall one"
            )
        points[point.name] = point
    return points


def plugin_names() -> list[str]:
    """Return the names of encoders that are not built in."""
    return [*installed(), *_from_files]


def find_plugin(name: str) -> EncoderSpec | None:
    """Return the facts of a plug-in encoder, or None where there is none of that name.

    Raises
    ------
    EncoderError
        The plug-in cannot be loaded, or is no `EncoderSpec` of that name.
    """
    if name in _from_files:
        return _from_files[name]
    if name not in installed():
        return None
    point = installed()[name]
    with foreign_code(f"plug-in encoder '{name}' ({point.value})"):
        spec = point.load()
    if not isinstance(spec, EncoderSpec) or spec.name != name:
        raise EncoderError(
            f"plug-in encoder '{name}' ({point.value}) is no EncoderSpec of its name"
        )
    return spec


def register_file(file: Path) -> list[str]:
    """Import a Python file and register every `EncoderSpec` that it defines.

    The file's own digest becomes part of their architecture: edited code is another encoder.

    Parameters
    ----------
    file
        Python file; it is run as a module of its own.

    Returns
    -------
    Names of the encoders that it defines.

    Raises
    ------
    EncoderError
        The file cannot be imported, defines none, or one whose name is taken.
    """
    try:
        source = read_regular(file)
    except OSError as error:
        raise UnknownEncoderError(f"{file}: {error.strerror}") from None
    # The module is named by its content: the same file twice is one module, an edited one another.
    digest = hashlib.sha256(source).hexdigest()[:12]
    name = f"embedcache_encoder_file_{digest}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(file)
        try:
            with foreign_code(str(file)):
                # Not by an import, which would take a file edited within a second from its cache.
                exec(compile(source, str(file), "exec"), vars(module))  # noqa: S102 - the user's own
        except EmbedcacheError:
            del sys.modules[name]
            raise
    specs = [value for value in vars(sys.modules[name]).values() if isinstance(value, EncoderSpec)]
    if not specs:
        raise EncoderError(
            f"{file}: defines no EncoderSpec; see CONTRIBUTING.md, 'An encoder of your own'"
        )
    taken = [spec.name for spec in specs if spec.name in BUILTIN or spec.name in installed()]
    if taken:
        raise EncoderError(f"{file}: encoder '{taken[0]}' exists already; choose another name")
    for spec in specs:
        _from_files[spec.name] = replace(spec, architecture=f"{spec.architecture}@{digest}")
    return [spec.name for spec in specs]
