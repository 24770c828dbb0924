"""`mbsd bench …`: the command line of `mbsd.tools.bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mbsd.io.files import replace_text

bench_app = typer.Typer(no_args_is_help=True, help="Measurements, each against the alternative in the same run.")

Ranks = Annotated[list[int], typer.Option(help="Numbers of ranks to measure at; may be given several times.")]
Layers = Annotated[int, typer.Option(min=1, help="Of the model's encoder; 12 is BERT-base.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the numbers there.")]


@bench_app.command("lamb")
def bench_lamb(
    ranks: Ranks = [1, 2, 4],  # noqa: B006 (typer reads it as the option's default)
    turns: Annotated[int, typer.Option(min=1, help="Steps of each contestant.")] = 9,
    layers: Layers = 12,
    json_file: JsonFile = None,
) -> None:
    """LAMB's step under ZeRO-2 at BERT-base's size: milliseconds, bytes of state, ratios to AdamW and a plain loop."""
    from mbsd.tools.bench.lamb import measure_lamb

    _write_json(json_file, measure_lamb(tuple(ranks), turns, layers))


@bench_app.command("step")
def bench_step(  # noqa: PLR0913 (typer makes an option of each parameter)
    model: Annotated[list[str], typer.Option(help="base, small; may be repeated.")] = ["base", "small"],  # noqa: B006
    stage: Annotated[list[str], typer.Option(help="masked, matching; repeated.")] = ["masked", "matching"],  # noqa: B006
    lengths: Annotated[list[str], typer.Option(help="real, longest; may be repeated.")] = ["real", "longest"],  # noqa: B006
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Timed steps of each contestant; medians are reported.")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="Of the encoder, instead of the model's own.")] = None,
    json_file: JsonFile = None,
) -> None:
    """A training step, packed, against plain `BertModel` with padding: samples/s, tokens/s, MFU, memory, ratios."""
    from mbsd.tools.bench.step import StepBench, measure_step

    bench = StepBench(tuple(model), tuple(stage), tuple(lengths), batch, turns, layers)
    _write_json(json_file, measure_step(bench))


@bench_app.command("contrastive")
def bench_contrastive(  # noqa: PLR0913 (typer makes an option of each parameter)
    rows: Annotated[list[int], typer.Option(min=2, help="Of a global batch; may be repeated.")] = [  # noqa: B006
        256,
        1024,
        4096,
        8192,
        16384,
        32768,
    ],  # fmt: skip
    ranks: Ranks = [1, 2],  # noqa: B006 (typer reads it as the option's default)
    loss: Annotated[str, typer.Option(help="softmax or sigmoid.")] = "softmax",
    targets: Annotated[str, typer.Option(help="shared, masked or own.")] = "shared",
    dim: Annotated[int, typer.Option(min=1, help="Numbers of a vector.")] = 512,
    chunk: Annotated[int, typer.Option(min=1, help="Rows of similarities that are held at a time.")] = 1024,
    turns: Annotated[int, typer.Option(min=1, help="Timed turns of each loss; medians are reported.")] = 3,
    micro_batch: Annotated[int, typer.Option(min=0, help="Samples, of two passes; 0: they are left out.")] = 8,
    json_file: JsonFile = None,
) -> None:
    """The contrastive loss against all-gather, dense logits and autograd; and the memory of a step of two passes."""
    from mbsd.tools.bench.contrastive import ContrastiveBench, measure_contrastive

    bench = ContrastiveBench(tuple(rows), tuple(ranks), loss, targets, dim, chunk, turns, micro_batch)
    _write_json(json_file, measure_contrastive(bench))


@bench_app.command("checkpoint")
def bench_checkpoint(
    ranks: Ranks = [1, 2, 4],  # noqa: B006 (as above)
    saves: Annotated[int, typer.Option(help="Saves of each kind; medians are reported.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where is written; default: a temporary folder.")] = None,
    layers: Layers = 12,
    json_file: JsonFile = None,
) -> None:
    """Stall, time to durable, bytes and time to resume at BERT-base's size, against DeepSpeed's own save."""
    from mbsd.tools.bench.checkpoint import measure_checkpoint

    _write_json(json_file, measure_checkpoint(tuple(ranks), saves, folder, layers))


@bench_app.command("mining")
def bench_mining(  # noqa: PLR0913 (typer makes an option of each parameter)
    rows: Annotated[list[int], typer.Option(help="Rows of a generated log; may be repeated.")] = [  # noqa: B006
        2_000_000,
        20_000_000,
    ],  # fmt: skip
    spark: Annotated[bool, typer.Option(help="Spark on local[2] too, at up to --compare-rows.")] = True,
    naive: Annotated[bool, typer.Option(help="The cross join of categories too, at up to --compare-rows.")] = True,
    compare_rows: Annotated[int, typer.Option(help="The largest log that Spark and the cross join get.")] = 20_000_000,
    memory_limit: Annotated[str, typer.Option(help="Of DuckDB (200 M rows: 2GB); Spark's driver gets 2GB.")] = "700MB",
    threads: Annotated[int, typer.Option(help="Of each engine.")] = 2,
    folder: Annotated[Path | None, typer.Option(help="For the logs, which are kept; without: a temporary one.")] = None,
    json_file: JsonFile = None,
) -> None:
    """CPU seconds, peak memory and spill of mining a generated log, by rows and engine."""
    from mbsd.tools.bench.mining import MiningBench, measure_mining

    bench = MiningBench(tuple(rows), spark, naive, compare_rows, threads, memory_limit, folder)
    _write_json(json_file, measure_mining(bench))


@bench_app.command("catalog")
def bench_catalog(
    rows: Annotated[int, typer.Option(help="Of the generated items, which have no pictures.")] = 1_000_000,
    parts: Annotated[int, typer.Option(help="In which the catalogue is built.")] = 4,
    folder: Annotated[Path | None, typer.Option(help="For items and catalogues; without: a temporary one.")] = None,
    json_file: JsonFile = None,
) -> None:
    """A catalogue built at once, and in parts that are merged: rows a CPU second, memory; the bytes must be equal."""
    from mbsd.tools.bench.catalog import CatalogBench, measure_catalog

    _write_json(json_file, measure_catalog(CatalogBench(rows, parts, folder)))


@bench_app.command("loader")
def bench_loader(  # noqa: PLR0913 (typer makes an option of each parameter)
    catalog: Annotated[Path, typer.Option(help="Folder written by `mbsd catalog build`.")],
    image_size: Annotated[int, typer.Option(min=1, help="Pixels of a side that the model sees.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a micro-batch.")] = 64,
    batches: Annotated[int, typer.Option(min=1, help="Micro-batches of each turn.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Timed turns of each loader; medians are reported.")] = 5,
    workers: Annotated[list[int], typer.Option(min=0, help="Loader processes; may be repeated.")] = [0, 2],  # noqa: B006
    train: Annotated[bool, typer.Option(help="A training run's share of waiting too.")] = True,
    epochs: Annotated[bool, typer.Option(help="Memory after 1, 2 and 4 epochs too.")] = True,
    mixed: Annotated[
        int, typer.Option(min=0, help="The mixture of so many catalogues too, each this one; 0: not.")
    ] = 0,
    json_file: JsonFile = None,
) -> None:
    """Images a second of both decoders and of whole micro-batches, against a Dataset with Pillow on the same files."""
    from mbsd.tools.bench.loader import LoaderBench, measure_loader

    bench = LoaderBench(catalog, image_size, batch, batches, turns, tuple(workers), train, epochs, mixed)
    _write_json(json_file, measure_loader(bench))


@bench_app.command("latency")
def bench_latency(  # noqa: PLR0913 (typer makes an option of each parameter)
    batch: Annotated[list[int], typer.Option(min=1, help="Samples of a step; may be repeated.")] = [  # noqa: B006
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    ],  # fmt: skip
    models: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: all. A wrong one lists them.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each cell.")] = 128,
    seconds: Annotated[float, typer.Option(min=0, help="Limit of a cell; the table shows a shorter one.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="On a CPU.")] = 2,
    picture: Annotated[Path | None, typer.Option(help="Also draw it there (.png, .svg).")] = None,
    json_file: JsonFile = None,
) -> None:
    """Fig. 8: milliseconds of MBSD in several forms, of its baselines and of a bare BERT encoder, by batch size."""
    from mbsd.tools.bench.latency import LatencyBench, measure_latency
    from mbsd.tools.bench.latency_chart import draw_latency

    numbers = measure_latency(LatencyBench(tuple(batch), tuple(models or ()), steps, seconds, threads))
    _write_json(json_file, numbers)
    if picture is not None:
        draw_latency(numbers, picture)


@bench_app.command("search")
def bench_search(  # noqa: PLR0913 (typer makes an option of each parameter)
    vectors: Annotated[int, typer.Option(min=64, help="That are searched; made with the structure of a shop.")] = 10**6,
    width: Annotated[int, typer.Option(min=1, help="Numbers of a vector.")] = 512,
    spread: Annotated[
        float, typer.Option(min=0, help="An item's own part beside its category's; more is harder.")
    ] = 0.6,
    queries: Annotated[int, typer.Option(min=1, help="Asked at once.")] = 1000,
    nearest: Annotated[int, typer.Option(min=1, help="Asked for by each query.")] = 10,
    probed: Annotated[list[int], typer.Option(min=1, help="Cells looked into; repeated.")] = [1, 8, 32, 128, 256],  # noqa: B006
    turns: Annotated[int, typer.Option(min=1, help="Of each search; the fastest counts.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of faiss.")] = 2,
    json_file: JsonFile = None,
) -> None:
    """The nearest of many vectors, exactly and by cells: seconds to build and to search, recall, memory."""
    from mbsd.tools.bench.search import SearchBench, measure_search

    bench = SearchBench(vectors, width, spread, queries, nearest, tuple(probed), turns, threads)
    _write_json(json_file, measure_search(bench))


@bench_app.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json, gpu.md, logs and runs.")] = Path("runs/gpu"),
    minutes: Annotated[float, typer.Option(min=0, help="What is not measured by then is said to be so.")] = 10.0,
    part: Annotated[list[str] | None, typer.Option(help="May be repeated; a wrong one lists them.")] = None,
    model: Annotated[str, typer.Option(help="base; or tiny, to try the commands.")] = "base",
) -> None:
    """Everything that only a GPU can tell: its tests, runs of both stages, resuming, all benches, the plan's error."""
    from mbsd.tools.gpu_check.check import Check, check_gpu

    check_gpu(Check(out, minutes, tuple(part or ()), model))


def _write_json(path: Path | None, numbers: dict[str, Any]) -> None:
    if path is not None:
        replace_text(path, json.dumps(numbers, indent=1) + "\n")
