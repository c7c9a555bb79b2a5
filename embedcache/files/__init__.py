"""Durable writes, digests, locks, and the storage backend."""
