"""Last stage: a whole bundle, written aside, measured, and moved to its place when every graph agrees with PyTorch."""

from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory

from ..runtime.bundle import Bundle, Graph, Weights
from ..runtime.cache import new_folder, plain_disk_errors, sha256
from ..runtime.errors import FidError, InputError
from ..runtime.prepare import prepared
from ..trainer.networks_sface import SFace
from .fold import rounded_to_half
from .graphs import IDENTITY_SIZE, W_SIZE, IdentityGraph, bundle_graphs
from .parity import Parity, measure, parity_inputs
from .read import Networks
from .to_onnx import to_onnx
from .to_weights import WEIGHTS_FILE, WeightsFile, store

SUFFIX = ".fid"
MIN_INPUTS = 32  # fewer do not count as a measurement


def export_bundle(
    networks: Networks,
    target: Path,
    *,
    name: str = "default",
    half: bool = True,
    self_contained: bool = False,
    inputs: int = MIN_INPUTS,
    threads: int = 2,
    report: Callable[[str, Parity], None] = lambda graph, parity: None,
) -> Bundle:
    """Write a bundle to `target`, a folder or a .fid file, and return it.

    half: store large weights in FP16. self_contained: put the identity encoder into the bundle as well, which else
    comes from fetched files. inputs: how many inputs each graph is measured on. `report` is called with each
    measurement.

    A bundle that is already at `target` is replaced when the new one is good. Raises FidError, and leaves nothing
    behind, when a graph differs from PyTorch by more than its tolerance; InputError when `target` holds something else.
    """
    _check_target(target)
    if target.suffix == SUFFIX:
        with plain_disk_errors("writing the bundle", target.parent), TemporaryDirectory(dir=_parent(target)) as scratch:
            bundle = export_bundle(
                networks,
                Path(scratch) / "bundle",
                name=name,
                half=half,
                self_contained=self_contained,
                inputs=inputs,
                threads=threads,
                report=report,
            )
            bundle.pack(Path(scratch) / target.name).replace(target)
        return Bundle.load(target)
    original = networks.for_inference()
    stored = original.rounded_to_half() if half else original
    identity = SFace.load()
    modules, references = bundle_graphs(stored), bundle_graphs(original)
    if self_contained:
        modules["identity"] = IdentityGraph(rounded_to_half(identity) if half else identity)  # type: ignore[arg-type]
    references["identity"] = IdentityGraph(identity)
    with plain_disk_errors("writing the bundle", _parent(target)), new_folder(target) as folder:
        weights, graphs = WeightsFile(folder / WEIGHTS_FILE), {}
        for graph, module in modules.items():
            store(to_onnx(module), folder / f"{graph}.onnx", weights)
            file = f"{graph}.onnx"
            graphs[graph] = Graph(file, sha256(folder / file), module.inputs, module.outputs)
        if not self_contained:
            module = references["identity"]
            graphs["identity"] = Graph(None, None, module.inputs, module.outputs, prepared="identity")
            modules["identity"] = module
        arrays = parity_inputs(stored, max(inputs, MIN_INPUTS))
        parity: dict[str, Parity] = {}
        for graph, description in graphs.items():
            path = folder / description.file if description.file else prepared(graph)
            parity[graph] = measure(path, modules[graph], references[graph], arrays, threads)
            report(graph, parity[graph])
        _check_parity(parity)
        bundle = Bundle(
            folder=folder,
            name=name,
            version=installed_version("fid-face"),
            resolution=networks.resolution,
            graphs=graphs,
            weights=(Weights(WEIGHTS_FILE, sha256(folder / WEIGHTS_FILE)),),
            precision="fp16 weights, fp32 arithmetic" if half else "fp32",
            identity_size=IDENTITY_SIZE,
            attributes_size=networks.attributes_size,
            w_size=W_SIZE,
            provenance=networks.provenance,
            parity={graph: result.to_json() for graph, result in parity.items()},
        )
        bundle.save()
        bundle.verify()
    return Bundle.load(target)


def _check_parity(parity: dict[str, Parity]) -> None:
    faults = [f"{graph}: {result.fault}" for graph, result in parity.items() if result.fault is not None]
    if faults:
        raise FidError(f"the export does not agree with PyTorch, so no bundle was written; {'; '.join(faults)}.")


def _check_target(target: Path) -> None:
    """Only a bundle or nothing may be replaced."""
    if target.suffix == SUFFIX:
        if target.is_dir():
            raise InputError(f"{target} is a folder; give another name, or remove it.")
    elif target.is_file():
        raise InputError(f"{target} is a file: expected the name of a folder, or one that ends in {SUFFIX}.")
    elif target.is_dir() and any(target.iterdir()) and not (target / "bundle.json").is_file():
        raise InputError(f"{target} holds something else than a bundle; give another name, or empty it.")


def _parent(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent
