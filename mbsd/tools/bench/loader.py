"""`mbsd bench loader`: pictures a second of both decoders and of whole micro-batches, against a loader written by hand.

All read the same pictures and titles in one run and take turns; medians are reported. Whole micro-batches hold what
stage 1 trains on: tokens, masks, the packed plan and augmented pictures. The time that training waits for data is
measured in a separate training run, memory over several epochs in a separate process.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from mbsd.batch import Batch
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs, Items
from mbsd.config.catalogs import CatalogConfig
from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import BatchSizes
from mbsd.config.stages import MaskingConfig
from mbsd.data.augment import draw_augmentation
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_dali import dali_installed, make_decoder
from mbsd.data.loader import TrainLoader
from mbsd.data.mixture import order_of
from mbsd.data.samples import CatalogSamples
from mbsd.data.spec import BatchSpec, Masked
from mbsd.data.text import build_tokenizer
from mbsd.errors import UserError
from mbsd.metrics.throughput import cpu_seconds
from mbsd.parallel.devices import choose_device
from mbsd.parallel.launch_env import find_launch_environment
from mbsd.parallel.world import World
from mbsd.tools.bench.loader_plain import PlainDataset, plain_batches, write_files
from mbsd.tools.bench.loader_wait import measure_data_wait

PATCH = 32  # pixels of a side: what the four convolutions make one token of
VOCABULARY = 4000
EPOCHS = (1, 2, 4)
PLAIN = "plain"  # the loader written by hand


@dataclass(frozen=True)
class LoaderBench:
    """What is measured.

    Attributes:
        catalog: built folder whose pictures and titles are read.
        image_size: pixels of a side that the model sees.
        batch: samples of a micro-batch.
        batches: micro-batches of a turn.
        turns: timed turns of each loader.
        num_workers: numbers of loader processes to measure.
        train: also measure the share of time that a training run waits for data.
        epochs: also measure memory after 1, 2 and 4 epochs.
        mixed: also measure the mixture of so many catalogues, each of them this one: the same pictures; 0: not.
    """

    catalog: Path
    image_size: int
    batch: int
    batches: int
    turns: int
    num_workers: tuple[int, ...]
    train: bool
    epochs: bool
    mixed: int = 0


def measure_loader(bench: LoaderBench) -> dict[str, Any]:
    """Measure, print tables and return the numbers.

    Returns:
        `decoders`: name -> pictures per second from JPEG bytes in memory. `loaders`: for each number of workers and
        way the pictures per second, CPU milliseconds per picture (workers included), and the ratio of the speed to the
        plain loader's. `training`: from `measure_data_wait`. `memory`: way -> megabytes (PSS of the process and its
        workers) after 1, 2 and 4 epochs.

    Raises:
        UserError: the catalogue has too few pictures for a micro-batch, or patches do not fill the picture.
    """
    catalog = Catalog(bench.catalog)
    items = [item for item in catalog.indices().tolist() if catalog.has_image(item)]
    if bench.image_size % PATCH:
        raise UserError(f"--image-size {bench.image_size}: expected a multiple of {PATCH}")
    if len(items) < bench.batch:
        raise UserError(f"{bench.catalog}: {len(items)} pictures; expected at least a micro-batch of {bench.batch}")
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    result: dict[str, Any] = {"items": len(catalog), **_plainly(bench)}
    with tempfile.TemporaryDirectory(prefix="mbsd-bench-") as name:
        folder = Path(name)
        result["decoders"] = _decoders(bench, catalog, items)
        result["loaders"] = _loaders(bench, catalog, items, folder)
        if bench.train:
            workers = max(bench.num_workers)
            result["training"] = measure_data_wait(bench.catalog, bench.image_size, bench.batch, workers)
        if bench.epochs:
            result["memory"] = {way: _memory_of(bench, way) for way in _ways(bench)}
    _print(console, result)
    return result


def _ways(bench: LoaderBench) -> list[str]:
    return ["torchvision", *(["dali"] if dali_installed() else [])]


def _decoders(bench: LoaderBench, catalog: Catalog, items: list[int]) -> dict[str, float]:
    """Decoder -> pictures per second, from JPEG bytes in memory to pixels, augmented as in training."""
    jpegs = [catalog.image(item) or b"" for item in items[: bench.batch]]
    drawn = draw_augmentation([np.random.default_rng(i) for i in range(len(jpegs))], (0.8, 1.0), 0.5)
    cores = os.cpu_count() or 1
    decoders = {way: make_decoder(way, bench.image_size, "cpu", cores, bench.batch) for way in _ways(bench)}
    if torch.cuda.is_available() and dali_installed():
        decoders["dali mixed"] = make_decoder("dali", bench.image_size, "cuda", 4, bench.batch)
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for turn in range(bench.turns + 1):
        for name, decoder in decoders.items():
            started = time.perf_counter()
            for _ in range(max(1, bench.batches // 4)):
                decoder.decode(jpegs, drawn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first turn builds pipelines
                seconds[name].append(time.perf_counter() - started)
    done = max(1, bench.batches // 4) * len(jpegs)
    return {name: done / statistics.median(times) for name, times in seconds.items()}


def _loaders(bench: LoaderBench, catalog: Catalog, items: list[int], folder: Path) -> list[dict[str, Any]]:
    tokenizer = _tokenizer(catalog, folder)
    files = write_files(catalog, items, folder / "files")
    titles = [catalog.title(item) for item in items]
    plain_dataset = PlainDataset(files, titles, tokenizer, bench.image_size, max_tokens=144)
    rows = []
    for workers in bench.num_workers:
        makers: dict[str, Callable[[], Iterator[Any]]] = {
            way: (lambda way=way, workers=workers: iter(train_loader(bench, catalog, tokenizer, way, workers)))  # type: ignore[misc]
            for way in _ways(bench)
        }
        if bench.mixed:
            makers[_mixed(bench)] = lambda workers=workers: iter(  # type: ignore[misc]
                train_loader(bench, _several(bench), tokenizer, "torchvision", workers)
            )
        makers[PLAIN] = lambda workers=workers: plain_batches(plain_dataset, bench.batch, workers)  # type: ignore[misc]
        rates: dict[str, list[float]] = {way: [] for way in makers}
        costs: dict[str, list[float]] = {way: [] for way in makers}
        for _ in range(bench.turns):
            for way, make in makers.items():
                rate, cost = _rate(make(), bench)
                rates[way].append(rate)
                costs[way].append(cost)
        plain = statistics.median(rates[PLAIN])
        for way in makers:
            rate = statistics.median(rates[way])
            rows.append(
                {
                    "workers": workers,
                    "way": way,
                    "images_per_s": rate,
                    "cpu_ms_per_image": statistics.median(costs[way]),
                    "ratio": rate / plain,
                }
            )
    return rows


def _mixed(bench: LoaderBench) -> str:
    return f"torchvision, {bench.mixed} catalogues"


def _several(bench: LoaderBench) -> Catalogs:
    return Catalogs({f"catalog{number}": bench.catalog for number in range(bench.mixed)})


def train_loader(
    bench: LoaderBench, catalog: Items, tokenizer: PreTrainedTokenizerBase, way: str, workers: int
) -> TrainLoader:
    """This project's loader as stage 1 uses it, on one rank, with the decoder `way` (torchvision or dali)."""
    device = choose_device(find_launch_environment(os.environ))
    decoder = make_decoder(way, bench.image_size, device, max(1, workers), bench.batch)
    several = None
    if isinstance(catalog, Catalogs):
        several = tuple(CatalogConfig(str(bench.catalog), name=name) for name in catalog.names)
    one = str(bench.catalog) if several is None else None
    data = DataConfig(one, several, image_size=bench.image_size, num_workers=workers)
    spec = BatchSpec(("full",), Masked(MaskingConfig()), (bench.image_size // PATCH) ** 2, train=True)
    builder = BatchBuilder(catalog, tokenizer, data, spec, decoder)
    samples, order = order_of(CatalogSamples(catalog, None), catalog, data, seed=0)
    sizes = BatchSizes(bench.batch, bench.batch, 1)
    return TrainLoader(samples, builder, order, sizes, World(0, 1, 0, device))


def _rate(batches: Iterator[Any], bench: LoaderBench) -> tuple[float, float]:
    """Pictures per second and CPU milliseconds per picture, after a warm-up of three micro-batches."""
    for _ in range(3):
        next(batches)
    started, spent, images = time.perf_counter(), cpu_seconds(), 0
    for batch in itertools.islice(batches, bench.batches):
        images += len(batch.images if isinstance(batch, Batch) else batch["images"])
    elapsed, used = time.perf_counter() - started, cpu_seconds() - spent
    return images / elapsed, 1000 * used / images


def _tokenizer(catalog: Catalog, folder: Path) -> PreTrainedTokenizerBase:
    return build_tokenizer((catalog.title(item) for item in range(len(catalog))), VOCABULARY, folder / "tokenizer")


def _memory_of(bench: LoaderBench, way: str) -> list[float]:
    words = [sys.executable, "-m", __name__, way, json.dumps(_plainly(bench))]
    done = subprocess.run(words, stdout=subprocess.PIPE, encoding="utf-8", errors="replace", check=True)
    megabytes: list[float] = json.loads(done.stdout.splitlines()[-1])
    return megabytes


def _memory(bench: LoaderBench, way: str) -> list[float]:
    """Megabytes (PSS) of this process and its workers after each of EPOCHS; shared pages are counted once."""
    catalog = Catalog(bench.catalog)
    megabytes = []
    with tempfile.TemporaryDirectory(prefix="mbsd-bench-") as folder:
        batches = iter(train_loader(bench, catalog, _tokenizer(catalog, Path(folder)), way, max(bench.num_workers)))
        taken = 0
        for epochs in EPOCHS:
            until = epochs * len(catalog) // bench.batch
            for _ in itertools.islice(batches, until - taken):
                pass
            taken = until
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            megabytes.append(sum(process.memory_full_info().pss for process in family) / 2**20)
    return megabytes


def _plainly(bench: LoaderBench) -> dict[str, Any]:
    return {**asdict(bench), "catalog": str(bench.catalog), "num_workers": list(bench.num_workers)}


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"Decoding to {result['image_size']} pixels, {os.cpu_count()} cores")
    table.add_column("decoder")
    table.add_column("images/s", justify="right")
    for name, rate in result["decoders"].items():
        table.add_row(name, f"{rate:,.0f}")
    console.print(table)
    table = Table(title=f"Micro-batches of {result['batch']} with text and masks")
    for heading in ("workers", "loader", "images/s", "CPU ms/image", "/ plain"):
        table.add_column(heading, justify="left" if heading == "loader" else "right")
    for row in result["loaders"]:
        table.add_row(
            str(row["workers"]), row["way"], f"{row['images_per_s']:,.0f}", f"{row['cpu_ms_per_image']:.2f}",
            f"{row['ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    rates = {(row["workers"], row["way"]): row["images_per_s"] for row in result["loaders"]}
    for workers in result["num_workers"] if result["mixed"] else ():
        mixed, one = (rates[workers, way] for way in (f"torchvision, {result['mixed']} catalogues", "torchvision"))
        console.print(f"{result['mixed']} catalogues, {workers} workers: {mixed / one:.3f} x one", highlight=False)
    if (training := result.get("training")) is not None:
        model, rate = f"{training['model']}, {max(result['num_workers'])} workers", f"{training['samples_per_s']:,.0f}"
        line = f"training ({model}): steps wait for data {training['data_wait']:.1%} of the time, {rate} samples/s"
        console.print(line, highlight=False)
    for way, megabytes in result.get("memory", {}).items():
        after = ", ".join(f"{mb:.0f}" for mb in megabytes)
        console.print(f"{way}: {after} MB after {', '.join(map(str, EPOCHS))} epochs", highlight=False)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[2])
    chosen |= {"catalog": Path(chosen["catalog"]), "num_workers": tuple(chosen["num_workers"])}
    print(json.dumps(_memory(LoaderBench(**chosen), sys.argv[1])))
