"""Parts of `bench_cuda.py` on the encoders: each yields names and what there is to say of them."""

from __future__ import annotations

import copy
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from embedcache.data.image_files import ImageFile
from embedcache.data.images import decode_image
from embedcache.encoders import registry
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import EncoderSpec, identity_of
from embedcache.encoders.torch_encoder import TorchEncoder
from embedcache.errors import DeviceError
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.files.backend import on_disk
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.store.embedding_store import EmbeddingStore

VIT = "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"
SMALL = "efficientnet-lite0"
PARITY = (
    *("resnet50", "efficientnetv2", SMALL, VIT, "dinov3", "dinov3:patches", "usfm", "usfm:cls"),
    *("mofo", "fetalclip", "fetalclip:cls", "ultrasam", "ultrasam:neck", "sononet16"),
)
RATES = ("resnet50", VIT, "dinov3", "usfm", "mofo", "fetalclip", "ultrasam")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Check:
    """What is checked, and how much of it.

    Parameters
    ----------
    device
        'cuda', 'cuda:N', or 'cpu' for a rehearsal.
    parity, rates
        Encoders of the parts of these names.
    batch
        Number of images a batch; None for what suits the encoder.
    seconds
        Seconds that each rate is taken over.
    n_survival, n_finetune, n_epochs
        Number of pictures that are extracted under a kill, and trained on, and of epochs.
    end
        Time, by the monotonic clock, after which nothing long is begun.
    folder
        Folder of the pictures, and of all that is written.
    pictures
        Pictures by kind, such as 'grey'.
    """

    device: str
    parity: tuple[str, ...]
    rates: tuple[str, ...]
    batch: int | None
    seconds: float
    n_survival: int
    n_finetune: int
    n_epochs: int
    end: float
    folder: Path
    pictures: dict[str, list[Path]]

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def has_time(self, seconds: float) -> bool:
        return time.monotonic() < self.end - seconds


# What the parts share


def random_network(name: str) -> tuple[EncoderSpec, nn.Module]:
    encoder = registry.load(
        registry.identify_by_name(f"random:{name}", digests=DigestCache()), device="cpu"
    )
    assert isinstance(encoder, TorchEncoder)
    return encoder.spec, encoder.module


def encoder_on(spec: EncoderSpec, module: nn.Module, precision: str, device: str) -> TorchEncoder:
    drawn = identity_of(spec, "drawn", precision)
    return TorchEncoder(spec, drawn, copy.deepcopy(module), device=device)


def noise(spec: EncoderSpec, n: int) -> np.ndarray:
    chance = np.random.default_rng(0)
    few = chance.normal(size=(min(n, 8), *spec.preprocess.shape)).astype(np.float32)
    return np.resize(few, (n, *spec.preprocess.shape))


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(rows - expected).max() / np.abs(expected).max())


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """Give a list that holds, afterwards, the percentage of the time in which the GPU was busy."""
    samples, shares, over = [], [], threading.Event()
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # without NVML there is nothing to say
        yield shares
        return

    def watch() -> None:
        while not over.wait(0.02):
            samples.append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield shares
    over.set()
    thread.join()
    shares.append(round(float(np.mean(samples)), 1) if samples else 0.0)


# The parts


def parity(check: Check) -> Iterator[tuple[str, dict]]:
    """Compare every encoder with the CPU's float32."""
    for name in check.parity:
        try:
            spec, module = random_network(name)
            batch = noise(spec, 2 if spec.preprocess.height > 600 else 4)
            expected = encoder_on(spec, module, "fp32", "cpu").encode(batch)
        except Exception as error:  # the others are checked all the same
            yield name, {"raised": in_words(error)}
            continue
        for precision in DTYPES:
            try:
                encoder = encoder_on(spec, module, precision, check.device)
                yield f"{name} {precision}", _parity(encoder, batch, expected)
                del encoder
            except Exception as error:
                yield f"{name} {precision}", {"raised": in_words(error)}
        if check.is_cuda:
            torch.cuda.empty_cache()


def _parity(encoder: TorchEncoder, batch: np.ndarray, expected: np.ndarray) -> dict:
    rows, again = encoder.encode(batch), encoder.encode(batch)
    neighbours = np.concatenate([batch[:1], np.zeros_like(batch[1:])])
    alone = encoder.encode(neighbours)[0]
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return {
        "error": relative_error(rows, expected),
        "cosine": float(((rows * expected).sum(axis=1) / norms).min()),
        "repeats": bool((rows == again).all()),
        "neighbours_do_not_matter": bool((alone == rows[0]).all()),
    }


def feed(check: Check) -> Iterator[tuple[str, dict]]:
    """Take the rate of reading, decoding and fitting, by threads and by processes."""
    preprocess = registry.find_spec("random:resnet50").preprocess
    for kind, paths in check.pictures.items():
        for label, pool_of in (("threads", ThreadPoolExecutor), ("processes", ProcessPoolExecutor)):
            for n_workers in sorted({1, usable_cores() // 2 or 1, usable_cores()}):
                some = paths[: max(16, min(len(paths), 60 * n_workers))]
                with pool_of(n_workers) as pool:
                    list(pool.map(fitted, some[: 2 * n_workers], [preprocess] * 2 * n_workers))
                    start = time.perf_counter()
                    chunk = 4 if label == "processes" else 1
                    list(pool.map(fitted, some, [preprocess] * len(some), chunksize=chunk))
                rate = len(some) / (time.perf_counter() - start)
                yield f"{kind}, {n_workers} {label}", {"images_per_s": round(rate, 1)}


def fitted(path: Path, preprocess: Preprocess) -> int:
    return len(preprocess(decode_image(path.read_bytes())))


def rates(check: Check) -> Iterator[tuple[str, dict]]:
    """Take images a second of the bare network, of the encoder, and of whole passes."""
    for name in check.rates:
        spec, module = random_network(name)
        for precision in ("fp32", "bf16"):
            label = f"{name} {precision}"
            if not check.has_time(90):
                yield label, {"skipped": "out of time"}
                continue
            try:
                yield label, _rates(check, encoder_on(spec, module, precision, check.device))
            except Exception as error:  # the others are measured all the same
                yield label, {"raised": in_words(error)}
            if check.is_cuda:
                torch.cuda.empty_cache()


def _rates(check: Check, encoder: TorchEncoder) -> dict:
    n = check.batch or encoder.batch_size
    batch = noise(encoder.spec, n)
    images = torch.from_numpy(batch).to(encoder.device, memory_format=torch.channels_last)
    dtype = DTYPES[encoder.identity["precision"]]

    def bare() -> None:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
            torch.autocast(encoder.device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            encoder.module(images)

    row = {"batch": n, "bare": round(n * _repeats_per_s(check, bare), 1)}
    row["queued"] = round(n * _repeats_per_s(check, lambda: encoder.encode_async(batch)), 1)
    if check.is_cuda:
        start = time.perf_counter()
        bare()
        row["launch_ms"] = round(1e3 * (time.perf_counter() - start), 1)
        torch.cuda.synchronize()
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.reset_peak_memory_stats()
    for kind, paths in check.pictures.items():
        n_pictures = int(row["queued"] * 2 * check.seconds) // n * n
        some = paths[: max(n, min(len(paths), n_pictures))]
        files = [ImageFile(path.name, str(path)) for path in some]
        with tempfile.TemporaryDirectory() as folder, busy_share() as shares:
            report = run_pass(files, [_job(Path(folder), encoder, check.batch)], DigestCache())
        row[f"pass_{kind}"] = round(len(some) / report.wall_s, 1)
        row[f"waited_{kind}"] = round(report.waited_s / report.wall_s, 2)
        if shares:
            row[f"busy_{kind}"] = shares[0]
    return row


def _repeats_per_s(check: Check, work: Callable[[], Callable[[], object] | None]) -> float:
    """Return how often a second some work is queued and, one turn later, fetched."""
    for _ in range(3):
        work()
    synchronise(check.device)
    start, count, fetch = time.perf_counter(), 0, None
    while count < 4 or time.perf_counter() - start < check.seconds:
        fetch_before, fetch = fetch, work()
        if fetch_before:
            fetch_before()
        count += 1
        if count % 4 == 0:
            synchronise(check.device)
    synchronise(check.device)
    return count / (time.perf_counter() - start)


def _job(folder: Path, encoder: TorchEncoder, batch: int | None) -> Job:
    document = {
        "name": encoder.spec.name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
    }
    store = EmbeddingStore.open_or_create(on_disk(folder / "encoder"), document)
    return Job(encoder.spec, store, lambda: encoder, batch_size=batch)


def memory(check: Check) -> Iterator[tuple[str, dict]]:
    """Halve a batch that does not fit, and load a network that does not fit."""
    if not check.is_cuda:
        yield "batch", {"skipped": "no GPU"}
        return
    spec, module = random_network(VIT)
    encoder = encoder_on(spec, module, "fp32", check.device)
    batch = noise(spec, encoder.batch_size)
    expected, sizes = encoder.encode(batch), []
    encoder.module.register_forward_hook(lambda *called: sizes.append(len(called[-1])))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4e8) / total)
        start = time.perf_counter()
        rows = encoder.encode(batch)
        yield (
            "batch",
            {
                "halved_to": max(sizes),
                "seconds": round(time.perf_counter() - start, 2),
                "error": relative_error(rows, expected),
            },
        )
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1e7) / total)
        try:
            encoder_on(spec, module, "fp32", check.device)
            yield "load", {"is_clean": False, "said": "it fitted"}
        except Exception as error:  # which error it is, is the question
            is_clean = isinstance(error, DeviceError) and "\n" not in str(error)
            yield "load", {"is_clean": is_clean, "said": in_words(error)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
