"""Last stage: a whole bundle, written aside, measured, and moved to its place when every graph agrees with PyTorch."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from ..runtime.engines.open import open_session
from ..runtime.errors import FidError, InputError
from ..runtime.weights.bundle import LIGHT, REFINE, REFINE_WEIGHTS, Bundle, Graph, Half, Weights
from ..runtime.weights.cache import new_folder, plain_disk_errors, sha256
from ..runtime.weights.prepare import prepared
from ..trainer.networks.sface import SFace
from .fold import rounded_to_half
from .gate import MIN_INPUTS as GATE_INPUTS
from .gate import Progress, Verdict, gate, gate_inputs, latent_names, psnr_db
from .graphs import IDENTITY_SIZE, W_SIZE, GraphModule, IdentityGraph, bundle_graphs, styles_of
from .parity import Arrays, Parity, measure, parity_inputs, run_module
from .read import Networks
from .refine import can_refine, write_refine
from .report import REPORT_FILE, Shown, report_page
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
    fp16: bool = False,
    self_contained: bool = False,
    inputs: int = MIN_INPUTS,
    threads: int = 2,
    report: Callable[[str, Parity | Verdict], None] = lambda graph, found: None,
    progress: Progress = lambda what, done, of: None,
) -> Bundle:
    """Write a bundle to `target`, a folder or a .fid file, and return it. A page with pictures and all figures lies in
    the folder, or beside the file.

    half: store large weights in FP16. fp16: add the form of each graph that computes in FP16, on a GPU, where it passes
    the gate. self_contained: put the identity encoder into the bundle as well, which else comes from fetched files.
    inputs: how many inputs each graph is measured on; the FP16 gate takes 64 at least. `report` is called with each
    measurement, `progress` while the gate is at work.

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
                fp16=fp16,
                self_contained=self_contained,
                inputs=inputs,
                threads=threads,
                report=report,
                progress=progress,
            )
            (bundle.folder / REPORT_FILE).replace(target.with_suffix(f".{REPORT_FILE}"))
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
        models: dict[str, bytes] = {}
        for graph, module in modules.items():
            model = to_onnx(module)
            if fp16 and graph != LIGHT:  # which is for CPUs
                models[graph] = model.SerializeToString()
            store(model, folder / f"{graph}.onnx", weights)
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
        verdicts: dict[str, Verdict] = {}
        if fp16:
            if "identity" not in models:
                rounded = IdentityGraph(rounded_to_half(identity) if half else identity)  # type: ignore[arg-type]
                models["identity"] = to_onnx(rounded).SerializeToString()
            progress("inputs of the gate", 0, 1)
            arrays = gate_inputs(stored, max(inputs, GATE_INPUTS))
            for graph, description in graphs.items():
                if graph == LIGHT:
                    continue
                path = folder / description.file if description.file else prepared(graph)

                def watch(what: str, done: int, of: int, graph: str = graph) -> None:
                    progress(f"{graph}: {what}", done, of)

                model = onnx.load_from_string(models.pop(graph))
                verdict = gate(model, path, description, arrays, threads=threads, progress=watch)
                if verdict is not None:
                    verdicts[graph] = verdict
                    graphs[graph] = replace(description, half=_store_half(verdict, folder, graph))
                    report(graph, verdict)
        files = [weights.path]
        if can_refine(stored):
            more = WeightsFile(folder / REFINE_WEIGHTS, before=weights)
            graphs[REFINE], parity[REFINE] = write_refine(stored, identity, folder, more, arrays, half, threads)
            files.append(more.path)
            report(REFINE, parity[REFINE])
            _check_parity(parity)
        bundle = Bundle(
            folder=folder,
            name=name,
            version=installed_version("fid-face"),
            resolution=networks.resolution,
            graphs=graphs,
            weights=tuple(Weights(file.name, sha256(file)) for file in files),
            precision=_precision(half, graphs),
            identity_size=IDENTITY_SIZE,
            attributes_size=networks.attributes_size,
            w_size=W_SIZE,
            n_styles=styles_of(networks.synthesis),
            provenance=networks.provenance,
            parity={graph: result.to_json() for graph, result in parity.items()},
        )
        bundle.save()
        bundle.verify()
        shown = _pictures(modules["synthesis"], bundle, verdicts.get("synthesis"), arrays)
        (folder / REPORT_FILE).write_text(report_page(bundle, shown), encoding="utf-8")
    return Bundle.load(target)


def _store_half(verdict: Verdict, folder: Path, graph: str) -> Half:
    """Write the typed graph beside its FP32 form, unless it has to stay FP32."""
    if verdict.reason is not None:
        return Half(None, None, reason=verdict.reason, gate=verdict.to_json())
    file = f"{graph}.fp16.onnx"
    store(verdict.half.model, folder / file, None)
    return Half(
        file,
        sha256(folder / file),
        raised=verdict.raised,
        bound=verdict.half.bound,
        gate=verdict.to_json(),
    )


def _pictures(module: GraphModule, bundle: Bundle, verdict: Verdict | None, arrays: Arrays) -> list[Shown]:
    """What the report shows: the hardest pictures for FP16, if it was tried, and some that nobody chose."""
    path = bundle.graph_path("synthesis")
    session = open_session(path, engine="onnxruntime")
    count = len(arrays["w_plus"])
    chosen = dict.fromkeys((0, 1, 2, count - 1), "")
    names = [f"Latent {index}" for index in range(count)]
    if verdict is not None:
        chosen |= dict.fromkeys(verdict.hardest[:3], ", among the three that FP16 changes most")
        names = latent_names(count)
    shown = []
    for index, note in sorted(chosen.items()):
        w_plus = arrays["w_plus"][index : index + 1]
        fp32 = session.run(w_plus=w_plus)["image"]
        fp16 = None if verdict is None else verdict.outputs[index]
        decibels = "" if fp16 is None else f": FP16 {psnr_db(fp16[None], fp32)[0]:.1f} dB from FP32"
        shown.append(
            Shown(f"{names[index]}{decibels}{note}.", run_module(module, {"w_plus": w_plus})[0], fp32[0], fp16)
        )
    return shown


def _precision(half: bool, graphs: dict[str, Graph]) -> str:
    """What bundle.json and the commands call the bundle's arithmetic."""
    text = "fp16 weights, fp32 arithmetic" if half else "fp32"
    return f"{text}, fp16 on GPUs" if any(graph.half and graph.half.file for graph in graphs.values()) else text


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
