"""`fid-export`: a trained checkpoint to a bundle that the runtime uses."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ..runtime.errors import FidError

if TYPE_CHECKING:
    from .parity import Parity
    from .to_tensorrt import Fact

NEEDED = ("torch", "safetensors", "onnxscript")
FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=FOLDER, required=False)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder, or NAME.fid for one file.")
@click.option("--generator", type=FOLDER, help="Run or checkpoint of `fid-train distill`. [default: the shipped one]")
@click.option("--name", default="default", show_default=True, help="Name of the bundle.")
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How large weights are stored; a CPU computes in FP32 either way.",
)
@click.option("--self-contained", is_flag=True, help="Put the identity encoder in, so that nothing has to be fetched.")
@click.option(
    "--inputs", type=click.IntRange(min=32), default=32, show_default=True, help="Inputs to measure parity on."
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads to use.")
@click.option(
    "--engine",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    show_default=True,
    help="Build engines as well, into this machine's cache; tensorrt-rtx needs no GPU for it.",
)
@click.option("--batch", default="1:1:4", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes of the engines.")
@click.option("--skeletons", is_flag=True, help="Write the graph skeletons of the fetched generator to OUTPUT instead.")
def command(
    checkpoint: Path | None,
    output: Path,
    generator: Path | None,
    name: str,
    precision: str,
    self_contained: bool,
    inputs: int,
    threads: int,
    engine: str,
    batch: str,
    skeletons: bool,
) -> None:
    """Export CHECKPOINT (a run or checkpoint of `fid-train fit`) to a bundle.

    Without CHECKPOINT the shipped weights are exported again. Every graph is compared with PyTorch; when one differs
    too much, nothing is written and the exit code is 1.
    """
    import torch

    from ..runtime.build_tensorrt import Batch, library

    sizes = Batch.parse(batch)
    if engine != "onnx":
        library(engine)  # before minutes of export: is it installed?
    torch.set_num_threads(threads)
    console = Console(highlight=False)
    if skeletons:
        from .skeletons import write_skeletons

        for skeleton in write_skeletons(output, threads):
            difference, unit = skeleton.parity.difference, skeleton.parity.tolerance.unit
            console.print(
                f"{skeleton.path}: {skeleton.path.stat().st_size} bytes, {skeleton.outside} more in the fetched file, "
                f"max {difference.max:.3g} {unit}, mean {difference.mean:.3g}",
                soft_wrap=True,
            )
        return
    from .read import read_networks
    from .to_bundle import export_bundle

    measured: dict[str, Parity] = {}

    def show(graph: str, parity: "Parity") -> None:
        measured[graph] = parity
        console.print(f"measured {graph}")

    try:
        bundle = export_bundle(
            read_networks(checkpoint, generator),
            output,
            name=name,
            half=precision == "fp16",
            self_contained=self_contained,
            inputs=inputs,
            threads=threads,
            report=show,
        )
    finally:
        if measured:
            console.print(_table(measured))
    size = sum((bundle.folder / file).stat().st_size for file, _ in bundle.files())
    console.print(f"wrote {output}: {size / 1e6:.1f} MB, {bundle.precision}", soft_wrap=True)
    if engine != "onnx":
        from .to_tensorrt import build_engines

        console.print(_engine_table(build_engines(bundle, engine, sizes), engine))


def _table(measured: "dict[str, Parity]") -> Table:
    """Parity as a table of less than 80 columns."""
    first = next(iter(measured.values()))
    title = f"PyTorch against {first.provider}, {first.inputs} inputs"
    table = Table(
        "graph", "unit", "max", "mean", "| unrounded: max", "mean", "dB", "", title=title, box=None, padding=(0, 1)
    )
    for graph, parity in measured.items():
        psnr = parity.unrounded.psnr_db
        table.add_row(
            graph,
            parity.tolerance.unit,
            f"{parity.difference.max:.2g}",
            f"{parity.difference.mean:.2g}",
            f"| {parity.unrounded.max:.2g}",
            f"{parity.unrounded.mean:.2g}",
            "" if psnr is None else f"{psnr:.1f}",
            "ok" if parity.fault is None else "REFUSED",
        )
    return table


def _engine_table(facts: "list[Fact]", engine: str) -> Table:
    """The engines as a table of less than 80 columns."""
    key = facts[0].engine.key
    target = key.gpu or f"SM {key.compute_capability}"
    title = f"{engine} engines for {target}, batch {key.batch}, in this machine's cache"
    table = Table("graph", "precision", "MB", "built in", "against FP32", title=title, box=None, padding=(0, 1))
    for fact in facts:
        megabytes, seconds = f"{len(fact.engine.plan) / 1e6:.1f}", f"{fact.engine.build_s:.1f} s"
        table.add_row(fact.graph, fact.engine.key.precision, megabytes, seconds, fact.checked)
    return table


def main() -> None:
    """The console script. Exit codes: 0, 1 for a failure, 2 for a wrong command line or input, 130 for Ctrl-C."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        click.echo(f"fid-export: {missing[0]} is not installed: `pip install 'fid-face[train]'`.", err=True)
        sys.exit(1)
    try:
        sys.exit(command.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FidError as error:
        click.echo(f"fid-export: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fid-export: stopped.", err=True)
        sys.exit(130)
