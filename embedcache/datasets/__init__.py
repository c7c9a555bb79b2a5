"""Adapters that write a manifest from a published data set, a folder, or nothing at all."""
