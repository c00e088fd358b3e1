"""`fid-export`: a trained checkpoint to a bundle that the runtime uses."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..runtime.commands.group import end_with_one_line
from ..runtime.errors import InputError
from ..runtime.media.images import check_not_input
from ..runtime.terminal import make_console

if TYPE_CHECKING:
    from ..runtime.weights.bundle import Bundle
    from .fp16.gate import Verdict
    from .parity import Parity
    from .read import Networks
    from .to_bundle import ExportConfig
    from .to_tensorrt import Fact


NEEDED = ("torch", "safetensors", "onnxscript")
FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=FOLDER, required=False)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder, or NAME.fid for one file.")
@click.option(
    "--generator",
    type=FOLDER,
    help="Run or checkpoint of `fid-train distill`, or a StyleGAN file of yours (NVIDIA's .pkl, rosinality's .pt, "
    ".h5, .safetensors). [default: the shipped one]",
)
@click.option(
    "--identity-encoder",
    multiple=True,
    type=FOLDER,
    metavar="FILE",
    help="The identity encoder that CHECKPOINT was trained with, a file of yours; several, `sface` among them, are "
    "joined. [default: sface]",
)
@click.option(
    "--light",
    type=FOLDER,
    help="Run or checkpoint of `fid-train distill --narrow`: a second, quicker generator, for live pictures on a CPU."
    " [default: the shipped one with the shipped generator]",
)
@click.option(
    "--resolution",
    type=click.Choice(["256", "512", "1024"]),
    help="Side of the pictures, px; a StyleGAN file of more is averaged down; 1024 alone takes the"
    " published generator. [default: the generator's own]",
)
@click.option("--noise/--no-noise", default=True, show_default=True, help="Keep the constant noise of a StyleGAN file.")
@click.option("--name", default="default", show_default=True, help="Name of the bundle.")
@click.option(
    "--fp16",
    is_flag=True,
    help="Add graphs that compute in FP16, for engines on a GPU, where their pictures pass a comparison with FP32.",
)
@click.option(
    "--weights",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How large weights are stored; a CPU computes in FP32 either way.",
)
@click.option("--self-contained", is_flag=True, help="Put the identity encoder in, so that nothing has to be fetched.")
@click.option(
    "--inputs",
    type=click.IntRange(min=32),
    default=32,
    show_default=True,
    help="Inputs to measure parity on; FP16 takes at least 64.",
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
@click.option(
    "--web",
    is_flag=True,
    help="Write a static site to OUTPUT that computes in the visitor's browser; CHECKPOINT is then a bundle."
    " [default: the shipped one]",
)
@click.option(
    "--triton",
    is_flag=True,
    help="Write a model repository for NVIDIA's Triton server to OUTPUT; CHECKPOINT is then a bundle. With --engine"
    " tensorrt the models are engines, built here. [default: the shipped one]",
)
@click.option(
    "--controls",
    is_flag=True,
    help="Write a copy of a bundle to OUTPUT, with the graph of --pose and --expression learned anew, which every other"
    " export does, too; CHECKPOINT is then that bundle. [default: the shipped one]",
)
@click.option(
    "--faces",
    type=click.IntRange(min=0),
    default=960,
    show_default=True,
    help="Generated faces from which --pose and --expression are learned; 0 leaves them out.",
)
@click.option("--skeletons", is_flag=True, help="Write the graph skeletons of the fetched generator to OUTPUT instead.")
def command(
    checkpoint: Path | None,
    output: Path,
    generator: Path | None,
    identity_encoder: tuple[Path, ...],
    light: Path | None,
    resolution: str | None,
    noise: bool,
    name: str,
    fp16: bool,
    weights: str,
    self_contained: bool,
    inputs: int,
    threads: int,
    engine: str,
    batch: str,
    web: bool,
    triton: bool,
    controls: bool,
    faces: int,
    skeletons: bool,
) -> None:
    """Export CHECKPOINT (a run or checkpoint of `fid-train fit`) to a bundle.

    Without CHECKPOINT the shipped weights are exported again. Every graph is compared with PyTorch; when one differs
    too much, nothing is written and the exit code is 1.
    """
    check_not_input(output, [path for path in (checkpoint, generator, light) if path])
    if web:
        if generator or light or fp16 or engine != "onnx" or resolution:
            raise InputError("--web makes a site of a finished bundle: export the bundle first, then --web BUNDLE.")
        _write_site(checkpoint, output)
        return
    if triton:
        if generator or light or fp16 or resolution or engine == "tensorrt-rtx":
            raise InputError("--triton takes a finished bundle: export it first, then --triton BUNDLE.")
        _write_repository(checkpoint, output, engine, batch)
        return
    import torch

    from ..runtime.engines.tensorrt.build import Batch, library

    sizes = Batch.parse(batch)
    if engine != "onnx":
        library(engine)  # before minutes of export: is it installed?
    torch.set_num_threads(threads)
    console = make_console()
    if controls:
        return _add_controls(checkpoint, output, faces, threads, console)
    if skeletons:
        return _write_skeletons(output, threads, console)
    from .read import read_networks
    from .to_bundle import ExportConfig

    side = int(resolution) if resolution else None
    networks = read_networks(checkpoint, generator, side, noise, light, identity_encoder)
    config = ExportConfig(
        name=name,
        fp16_weights=weights == "fp16",
        fp16_graphs=fp16,
        self_contained=self_contained,
        inputs=inputs,
        faces=faces,
        threads=threads,
    )
    bundle = _write_bundle(networks, output, config, console)
    if engine != "onnx":
        from .to_tensorrt import build_engines

        console.print(_engine_table(build_engines(bundle, engine, sizes), engine))


def _add_controls(bundle: Path | None, output: Path, faces: int, threads: int, console: Console) -> None:
    """Write a bundle with the graph of --pose and --expression, and say so."""
    from ..runtime.weights.bundle import Bundle
    from .to_bundle import with_controls

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("learning", total=faces)

        def show(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        made = with_controls(Bundle.load(bundle), output, faces, threads, show)
    console.print(f"wrote {output}: {made.name} with {', '.join(made.graphs)}", soft_wrap=True)


def _write_skeletons(output: Path, threads: int, console: Console) -> None:
    """Write the graph skeletons and print their sizes and differences."""
    from .skeletons import write_skeletons

    for skeleton in write_skeletons(output, threads):
        difference, unit = skeleton.parity.difference, skeleton.parity.tolerance.unit
        console.print(
            f"{skeleton.path}: {skeleton.path.stat().st_size} bytes, {skeleton.outside} more in the fetched file, "
            f"max {difference.max:.3g} {unit}, mean {difference.mean:.3g}",
        )


def _write_bundle(networks: "Networks", output: Path, config: "ExportConfig", console: Console) -> "Bundle":
    """Write a bundle; print what is measured on the way, and the tables even of an export that is refused."""
    from .parity import Parity
    from .to_bundle import export_bundle

    measured: dict[str, Parity] = {}
    judged: dict[str, Verdict] = {}
    origin = networks.provenance.get("generator", {})
    if "w_distance" in origin:
        console.print(
            f"{origin['file']} ({origin['layout']}, {origin['native_resolution']} px): its W is "
            f"{origin['w_distance']:.2g} standard deviations from the mapper's",
        )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("exporting", total=None)

        def show(graph: str, found: "Parity | Verdict") -> None:
            if isinstance(found, Parity):
                measured[graph] = found
            else:
                judged[graph] = found
            console.print(f"measured {graph}{'' if isinstance(found, Parity) else ' in FP16'}")

        def move(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        try:
            bundle = export_bundle(networks, output, config, report=show, progress=move)
        finally:
            bar.stop()
            if measured:
                console.print(_table(measured))
    if config.fp16_graphs:
        console.print(_gate_table(judged))
        for line in _remarks(judged):
            console.print(line)
    size = sum((bundle.folder / file).stat().st_size for file, _ in bundle.files())
    console.print(f"wrote {output}: {size / 1e6:.1f} MB, {bundle.precision}")
    return bundle


def _write_site(bundle: Path | None, output: Path) -> None:
    """Write the static site of a bundle, and say how it is served."""
    from ..runtime.weights.bundle import Bundle
    from .web.site import write_site

    console = make_console()
    with console.status("writing the site") as status:
        site = write_site(Bundle.load(bundle), output, progress=status.update)
    console.print(
        f"wrote {output}: {site.total / 1e6:.0f} MB, of which a visitor loads {site.first_picture / 1e6:.0f} MB "
        f"(compressed) up to the first picture and {site.live / 1e6:.0f} MB for the camera",
        soft_wrap=True,
    )
    console.print(
        f"to see it: python -m http.server --directory {output} 8000, then open http://localhost:8000", soft_wrap=True
    )


def _write_repository(bundle: Path | None, output: Path, engine: str, batch: str) -> None:
    """Write the model repository of a bundle, and say how it is served."""
    from ..runtime.engines.tensorrt.build import Batch
    from ..runtime.weights.bundle import Bundle
    from .triton import write_repository

    console, loaded = make_console(), Bundle.load(bundle)
    plans = None
    if engine == "tensorrt":
        from .to_tensorrt import build_engines

        plans = {fact.graph: fact.engine.plan for fact in build_engines(loaded, engine, Batch.parse(batch))}
    names = write_repository(loaded, output, plans)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.print(f"wrote {output}: {len(names)} models, {size / 1e6:.0f} MB: {', '.join(names)}", soft_wrap=True)
    console.print(
        f"to serve it: tritonserver --model-repository {output}; then fid-run ... --engine triton://HOST:8001",
        soft_wrap=True,
    )


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


def _gate_table(judged: "dict[str, Verdict]") -> Table:
    """The FP16 gate as a table of less than 80 columns."""
    title = f"FP16, rounded as a GPU does, against FP32, {next(iter(judged.values())).inputs} inputs" if judged else ""
    table = Table("graph", "dB: mean", "worst", "cosine: mean", "worst", "bound", "", title=title, box=None)
    for graph, verdict in judged.items():
        found = verdict.figures
        pictures = found.psnr_mean_db is not None
        cosines = (found.identity_cosine_mean, found.identity_cosine_worst)
        if not pictures:
            cosines = (found.cosine_mean, found.cosine_worst)
        table.add_row(
            graph,
            *("" if value is None else f"{value:.1f}" for value in (found.psnr_mean_db, found.psnr_worst_db)),
            *(f"{value:.6f}" for value in cosines),
            f"{verdict.model.bound:.0f}",
            "ok" if verdict.reason is None else "stays FP32",
        )
    return table


def _remarks(judged: "dict[str, Verdict]") -> Iterator[str]:
    """What the table cannot tell of layers and graphs that stay FP32."""
    for graph, verdict in judged.items():
        if verdict.reason is not None:
            yield f"{graph} stays FP32: {verdict.reason}."
        elif verdict.kept_fp32:
            layers = ", ".join(verdict.kept_fp32)
            yield f"{graph}: FP32 because FP16 spoiled the result ({verdict.first.fault}): {layers}."


def main() -> None:
    """Run the console script. Exit codes: 0, 1 for a failure, 2 for a wrong command line or input, 130 for Ctrl-C."""
    needed = () if {"--web", "--triton"} & {*sys.argv} else NEEDED  # these are made without PyTorch
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        click.echo(f"fid-export: {missing[0]} is not installed: `pip install 'fid-face[train]'`.", err=True)
        sys.exit(1)
    end_with_one_line("fid-export", lambda: command.main(standalone_mode=False))
