"""Images per second of the input pipeline, from stored JPEGs to batches, on made photographs.

  python benchmarks/data.py
  python benchmarks/data.py --against-torch --num-threads 2
  python benchmarks/data.py --memory 1000000

With --against-torch, a torch.utils.data.DataLoader does the same work on the same bytes, in as many
processes, turn by turn: Image.open, RGB, the shorter side resized with antialiasing, the central
square, float32 in [-1, 1], the caption's embedding, default collation.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from imagen_jax.cli import parsing, program

TEXT_LENGTH, TEXT_WIDTH = 128, 1024  # of T5 large
STATM = Path("/proc/self/statm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[int, ...] = (64, 256, 1024)
    """Sides of the squares that are made of the photographs."""
    width: int = 1600
    """Of the photographs, in pixels."""
    height: int = 1200
    """Of the photographs, in pixels."""
    quality: int = 88
    """JPEG quality of the photographs."""
    num_pictures: int = 16
    """Different photographs."""
    crop: Literal["center", "random", "aspect"] = "center"
    """What becomes the square; the other side of --against-torch always takes the centre."""
    batch_size: int = 16
    """Pictures in a batch."""
    num_batches: int = 4
    """Batches that are timed in each round, after a first one."""
    rounds: int = 5
    """Of which the median is taken."""
    num_threads: int = 0
    """Batches made at the same time in each process; 0 makes them when asked."""
    num_workers: int = 0
    """Extra processes."""
    against_torch: bool = False
    """Also measure a PyTorch DataLoader."""
    torch_draft: bool = False
    """Let that one, too, shrink JPEGs while they are decoded, as Image.thumbnail does."""
    memory: int = 0
    """Instead: read so many tiny records that are made on the fly, and show the memory in use."""


def main(options: Options) -> None:
    check(options)
    if options.memory:
        return show_memory(options)
    with tempfile.TemporaryDirectory(prefix="benchmark_data-") as directory:
        compare(options, Path(directory))


def check(options: Options) -> None:
    """Raises ValueError, before any work, about options that make no sense or would have no effect."""
    least = dict.fromkeys(("width", "height", "num_pictures", "batch_size", "num_batches", "rounds"), 1)
    least |= dict.fromkeys(("num_threads", "num_workers", "memory"), 0)
    for name, value in least.items():
        if getattr(options, name) < value:
            raise ValueError(f"{flag(name)} must be at least {value}; got {getattr(options, name)}.")
    if not options.sizes or min(options.sizes) < 1:
        raise ValueError(f"--sizes must be one or more numbers from 1; got {options.sizes}.")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"--quality must lie in 1..100; got {options.quality}.")
    if options.memory:
        check_memory(options)
    if options.torch_draft and not options.against_torch:
        raise ValueError("--torch-draft is an option of the other side of --against-torch; give both.")
    if options.against_torch and importlib.util.find_spec("torch") is None:
        raise ValueError("--against-torch needs torch: pip install torch, or leave it out.")


def check_memory(options: Options) -> None:
    used = {"memory", "crop", "batch_size", "num_threads", "num_workers"}
    for field in dataclasses.fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise ValueError(f"{flag(field.name)} has no effect with --memory; leave one of them out.")
    if options.memory < options.batch_size:
        raise ValueError(
            f"--memory must be at least --batch-size, {options.batch_size}; got {options.memory}."
        )
    if not STATM.is_file():
        raise ValueError(f"--memory reads {STATM}, which only Linux has; leave it out.")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parallel(options: Options) -> int:
    """Batches that are made at the same time, so cores that are used."""
    return max(1, options.num_threads) * max(1, options.num_workers)


def compare(options: Options, directory: Path) -> None:
    """Prints the table of images per second and core."""
    kilobytes = statistics.mean(len(data) for data in write_pictures(options, directory)) / 1000
    cores = parallel(options)
    print(
        f"{options.num_pictures} JPEGs of {options.width}x{options.height}, {kilobytes:.0f} kB on average; batches of "
        f"{options.batch_size}; {options.num_threads} threads, {options.num_workers} worker processes; medians of "
        f"{options.rounds} rounds of {options.num_batches * options.batch_size} images"
    )
    print(f"images/s per {'core' if cores == 1 else f'core, of {cores}'} (least to most)")
    print(f"{'size':>5} {'ours':>24}" + (f" {'torch':>24} {'ratio':>7}" if options.against_torch else ""))
    sides = (ours, theirs) if options.against_torch else (ours,)
    for size in options.sizes:
        rates = [[] for _ in sides]
        for _ in range(options.rounds):
            for side, found in zip(sides, rates, strict=True):
                with side(options, directory, size) as batches:
                    found.append(rate(batches, options) / cores)
        line = f"{size:>5}"
        for found in rates:
            spread = f"({min(found):.1f} to {max(found):.1f})"
            line += f" {statistics.median(found):>7.1f} {spread:>16}"
        if options.against_torch:
            line += f" {statistics.median(a / b for a, b in zip(*rates, strict=True)):>7.2f}"
        print(line, flush=True)


def rate(batches: Iterator, options: Options) -> float:
    """Images per second, once the first batch is there."""
    next(batches)
    begin = time.perf_counter()
    for _ in range(options.num_batches):
        next(batches)
    return options.num_batches * options.batch_size / (time.perf_counter() - begin)


@contextlib.contextmanager
def ours(options: Options, directory: Path, size: int) -> Iterator[Iterator]:
    from imagen_jax.data import pipeline, sources

    loader = pipeline.make_loader(
        Repeated(sources.open_source(directory / "records")),
        embeddings,
        image_size=size,
        batch_size=options.batch_size,
        text_length=TEXT_LENGTH,
        seed=0,
        crop=options.crop,
        num_threads=options.num_threads,
        num_workers=options.num_workers,
    )
    try:
        yield loader
    finally:
        loader.close()


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A data set of ordinary length: Grain's shuffling takes milliseconds a record below a hundred."""

    source: Any
    name: str = "photographs"

    def __len__(self) -> int:
        return 100_000

    def read(self, indices) -> list[dict]:
        return self.source.read(int(i) % len(self.source) for i in indices)


@contextlib.contextmanager
def theirs(options: Options, directory: Path, size: int) -> Iterator[Iterator]:
    import torch

    torch.set_num_threads(1)
    processes = parallel(options) if options.num_threads or options.num_workers else 0
    files = sorted((directory / "files").iterdir())
    # More than is asked for, as ours is endless: neither stops making batches before the time is taken.
    num_images = options.batch_size * (options.num_batches + 1 + 2 * processes)
    dataset = TorchFiles(files, num_images, size, options.torch_draft)
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, num_workers=processes)
    batches = iter(loader)
    try:
        yield batches
    finally:
        del batches


@dataclasses.dataclass(frozen=True)
class TorchFiles:
    """A map-style data set, as a PyTorch user would write it."""

    files: list[Path]
    num_images: int
    size: int
    draft: bool

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int):
        import torch

        path = self.files[index % len(self.files)]
        image = Image.open(path)
        if self.draft:
            image.draft("RGB", (2 * self.size, 2 * self.size))
        image = image.convert("RGB")
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        # Left in [H, W, C], as ours: most users pay for a transposition as well.
        x = torch.from_numpy(np.array(image)).float().div_(127.5).sub_(1)
        found = torch.from_numpy(embedding(int(path.stem[-4:])))
        text = torch.zeros(TEXT_LENGTH, TEXT_WIDTH)
        text[: len(found)] = found
        return x, text, torch.arange(TEXT_LENGTH) < len(found)


@functools.cache
def embedding(number: int) -> np.ndarray:
    return np.full((20 + number % 20, TEXT_WIDTH), 0.5, np.float32)


def embeddings(numbers: Sequence[int]) -> list[np.ndarray]:
    return [embedding(number % 1000) for number in numbers]


def write_pictures(options: Options, directory: Path) -> list[bytes]:
    """Writes the photographs as a data set, records/, and as files, files/; returns their bytes."""
    from imagen_jax.prepare.records import write_records

    encoded = [
        photograph(i, options.height, options.width, options.quality) for i in range(options.num_pictures)
    ]
    names = [f"picture {i:04d}" for i in range(len(encoded))]
    (directory / "files").mkdir()
    for name, data in zip(names, encoded, strict=True):
        (directory / "files" / f"{name}.jpg").write_bytes(data)
    records = ({"image": data, "caption": name} for name, data in zip(names, encoded, strict=True))
    write_records({"train": records}, directory / "records", name="photographs", description="Made.")
    return encoded


def photograph(seed: int, height: int, width: int, quality: int) -> bytes:
    """A JPEG with a photograph's share of large shapes, edges, texture and grain."""
    rng = np.random.default_rng(seed)
    x = np.full((height, width, 3), 128, np.float32)
    for cells, strength in ((8, 60), (32, 35), (128, 20)):  # smooth fields, finer and weaker
        field = rng.normal(size=(max(1, cells * height // width), cells, 3)).astype(np.float32)
        for channel in range(3):
            image = Image.fromarray(field[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            x[..., channel] += strength * np.asarray(image)
    for _ in range(40):  # rectangles: edges
        top, left = rng.integers(height), rng.integers(width)
        tall, wide = rng.integers(1, 1 + max(1, height // 4), size=2)
        x[top : top + tall, left : left + wide] += 50 * rng.normal(size=3)
    x += 5 * rng.normal(size=(height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Simulated:
    """So many records that no disk holds: each is made when it is read."""

    count: int
    images: tuple[bytes, ...]
    name: str = "simulated records"

    def __len__(self) -> int:
        return self.count

    def read(self, indices) -> list[dict]:
        return [
            {"image": self.images[int(i) % len(self.images)], "caption": f"record {int(i)}"} for i in indices
        ]


def tiny_embeddings(numbers: Sequence[int]) -> list[np.ndarray]:
    return [np.full((1, 8), number % 8, np.float32) for number in numbers]


def show_memory(options: Options) -> None:
    """Prints this process's resident memory while it reads --memory records."""
    from imagen_jax.data import pipeline, transforms

    rng = np.random.default_rng(0)
    images = tuple(transforms.encode_png(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(256))
    loader = pipeline.make_loader(
        Simulated(options.memory, images),
        tiny_embeddings,
        image_size=8,
        batch_size=options.batch_size,
        text_length=4,
        seed=0,
        num_epochs=1,
        crop=options.crop,
        num_threads=options.num_threads,
        num_workers=options.num_workers,
    )
    begin, num_read, marks = time.perf_counter(), 0, [0.01, 0.1, 0.5, 1]
    for batch in loader:
        num_read += len(batch["x"])
        while marks and num_read + options.batch_size > marks[0] * options.memory:
            print(
                f"{100 * marks.pop(0):4.0f} % of {options.memory} records: {resident_bytes() / 2**20:.1f} MiB "
                f"resident, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
    loader.close()


def resident_bytes() -> int:
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
