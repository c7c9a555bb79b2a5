"""For those who test against `embedcache`, or write an encoder for it; imports no torch."""

from embedcache.testing.contract import EncoderContract as EncoderContract
from embedcache.testing.fake import FakeEncoder as FakeEncoder
from embedcache.testing.images import write_cohort as write_cohort
from embedcache.testing.memory import MemoryBackend as MemoryBackend
