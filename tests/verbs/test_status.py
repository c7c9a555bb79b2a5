"""`status`: what a store holds, against what the manifest wants."""

from __future__ import annotations


def test_status_counts_what_is_wanted_held_failed_and_missing(project):
    project.extract("pixels", shard=(1, 2))
    (one,) = project.status().encoders
    assert (one.n_wanted, one.n_held, one.n_missing, one.n_failed) == (132, 66, 66, 0)
    project.extract("pixels", shard=(2, 2))
    (one,) = project.status().encoders
    assert (one.n_held, one.n_missing) == (132, 0)
    assert one.size_bytes > 132 * 256 * 4
