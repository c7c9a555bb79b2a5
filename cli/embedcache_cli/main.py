"""The command group: lazy, so that `--help` costs nothing, and the one place where errors end."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

import embedcache
from embedcache import errors
from embedcache.visible import visible_text
from embedcache_cli import process
from embedcache_cli.process import Terminated

VERBS: Final = {
    "quickstart": "embedcache_cli.quickstart:quickstart",
    "manifest": "embedcache_cli.manifest:manifest",
    "encoders": "embedcache_cli.encoders:encoders",
    "weights": "embedcache_cli.weights:weights",
    "extract": "embedcache_cli.extract:extract",
    "status": "embedcache_cli.status:status",
    "verify": "embedcache_cli.verify:verify",
    "export": "embedcache_cli.export:export",
    "folds": "embedcache_cli.folds:folds",
    "probe": "embedcache_cli.probe:probe",
    "finetune": "embedcache_cli.finetune:finetune",
    "zeroshot": "embedcache_cli.zeroshot:zeroshot",
    "compare": "embedcache_cli.compare:compare",
    "audit": "embedcache_cli.audit:audit",
    "sql": "embedcache_cli.sql:sql",
    "index": "embedcache_cli.index:index",
    "gc": "embedcache_cli.gc:gc",
    "doctor": "embedcache_cli.doctor:doctor",
}

# The first class that fits decides, so special ones stand before those they derive from.
EXIT_CODES: Final = (
    (errors.StoreCorruptError, 4),
    (errors.LeakageError, 5),
    (errors.EncoderWeightsError, 6),
    (errors.EmbedcacheError, 1),
)


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which one uses them."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


def _kebab(name: str) -> str:
    return name.replace("_", "-")


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": _kebab,
        "max_content_width": 100,
    },
)
@click.version_option(embedcache.__version__, prog_name="embedcache")
def cli() -> None:
    """Encode images once with frozen foundation models; probe, compare and ask on a laptop.

    Works on ./data_manifest.csv and ./.embedcache unless told otherwise. Start with `embedcache
    quickstart`.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code.

    An error that nobody has foreseen is one line too, unless EMBEDCACHE_DEBUG is set.
    """
    process.prepare()
    try:
        code = run(arguments)
    except Exception as error:
        if number := process.arrived_signal():
            code = _interrupted(128 + number)
        elif os.environ.get("EMBEDCACHE_DEBUG"):
            raise
        else:
            code = _failed(
                f"internal error: {_one_line(error)}; please report it with what it prints when "
                "EMBEDCACHE_DEBUG=1 is set"
            )
    process.end(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see docs/cli.md for what each means."""
    try:
        # click would end the process itself; errors of this project have exit codes of their own.
        code: Any = cli.main(arguments, prog_name="embedcache", standalone_mode=False)
        sys.stdout.flush()  # here, or it would fail when the interpreter ends
        return int(code or 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _interrupted(130)
    except Terminated:
        return _interrupted(143)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)  # several lines: how the command is used too
        with contextlib.suppress(OSError):
            click.echo("\n".join(map(visible_text, shown.getvalue().splitlines())), err=True)
        return error.exit_code
    except errors.EmbedcacheError as error:
        code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
        return _failed(str(error), code)
    except (OSError, MemoryError) as error:
        return _refused(error)


def _failed(message: str, code: int = 1) -> int:
    """Say why the command failed, where anybody can read it, and return its exit code."""
    with contextlib.suppress(OSError):
        click.echo(f"embedcache: {visible_text(message)}", err=True)
    return code


def _refused(error: OSError | MemoryError) -> int:
    """Say what the system has refused, and return the exit code."""
    if isinstance(error, MemoryError):
        return _failed(f"out of memory ({_one_line(error)}); take smaller batches or fewer models")
    if _is_of_output(error):
        return _output_failed(error)
    reason = error.strerror or _one_line(error)
    return _failed(f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _is_of_output(error: OSError) -> bool:
    """Tell whether an error was raised by printing."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") in {__name__, click.echo.__module__}


def _output_failed(error: OSError) -> int:
    """Say that the output cannot be written, unless its reader went away (`| head`)."""
    # What is not written yet goes to nowhere, or the interpreter would fail at it when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    return _failed(f"the output cannot be written: {error.strerror or error}")


def _interrupted(code: int) -> int:
    _failed("interrupted; what was finished is kept, run it again to go on")
    return code
