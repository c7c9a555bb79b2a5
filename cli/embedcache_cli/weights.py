"""`embedcache weights`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache_cli import options
from embedcache_cli.output import print_line


@click.group(short_help="Register a weights file that you downloaded.")
def weights() -> None:
    """Register weights files; they are kept in EMBEDCACHE_WEIGHTS_HOME or your data folder."""


@weights.command(short_help="Check a file, and keep a copy of it.")
@click.argument("name")
@click.argument("file", type=options.FILE)
@options.option("--link", is_flag=True, help="Keep a symbolic link instead of a copy.")
@options.encoder_file
def add(name: str, file: Path, link: bool, encoder_file: Path | None) -> None:
    """Load FILE into encoder NAME to see that it is the right one, then keep a copy of it.

    Layout, names and shapes of all its tensors are checked, and its digest is remembered.
    """
    from embedcache.encoders.plugins import register_file
    from embedcache.encoders.registry import identify_by_name, load
    from embedcache.encoders.weights import register_weights
    from embedcache.files.digests import DigestCache

    if encoder_file is not None:
        register_file(encoder_file)
    digests = DigestCache()
    encoder = identify_by_name(name, digests=digests, weights=file)
    load(encoder, device="cpu")
    digest, spec = digests.file_digest(file), encoder.spec
    copy = register_weights(spec, file, digest, link=link)
    print_line(f"{spec.name}: {copy} (sha256 {digest[:12]}, {spec.weights.licence})")
