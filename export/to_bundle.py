"""Last stage: a whole bundle, written aside, measured, and moved to its place when every graph agrees with PyTorch."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from ..runtime.assets import installed_version
from ..runtime.composer import Composer
from ..runtime.engines.compare import psnr_db
from ..runtime.engines.open import open_session
from ..runtime.errors import FidError, InputError
from ..runtime.weights import catalogue as models
from ..runtime.weights.bundle import CONTROLS, LIGHT, REFINE, REFINE_WEIGHTS, Bundle, FP16Graph, Graph, Weights
from ..runtime.weights.cache import new_folder, plain_disk_errors, scratch_folder, sha256
from ..runtime.weights.prepare import prepared
from ..trainer.controls import draw_faces, learn
from ..trainer.networks.sface import SFace
from .fold import rounded_to_fp16
from .fp16.gate import MIN_INPUTS as GATE_INPUTS
from .fp16.gate import Progress, Verdict, gate, gate_inputs, latent_names
from .graphs import W_SIZE, ControlsGraph, GraphModule, IdentityGraph, bundle_graphs, styles_of
from .parity import Arrays, Parity, measure, parity_inputs, run_module
from .read import Networks
from .refine import can_refine, write_refine
from .report import REPORT_FILE, Shown, report_page
from .to_onnx import to_onnx
from .to_weights import WEIGHTS_FILE, WeightsFile, store

SUFFIX = ".fid"
LEAST_FACES = 16  # generated ones, from which pose and expression are learned
MIN_INPUTS = 32  # fewer do not count as a measurement


@dataclass(frozen=True)
class ExportConfig:
    """What of the networks goes into a bundle, and how it is measured."""

    name: str = "default"
    fp16_weights: bool = True  # store large weights in FP16; a CPU computes in FP32 either way
    fp16_graphs: bool = False  # add the form of each graph that computes in FP16, where it passes the gate
    self_contained: bool = False  # put the identity encoder in as well, which else comes from fetched files
    inputs: int = MIN_INPUTS  # that each graph is measured on; the FP16 gate takes 64 at least
    faces: int = 0  # generated ones, from which is learned how pose and expression are scaled; 0: they are not
    threads: int = 2  # of the CPU

    def __post_init__(self) -> None:
        if self.faces:
            _check_faces(self.faces)


def export_bundle(
    networks: Networks,
    target: Path,
    config: ExportConfig | None = None,
    *,
    report: Callable[[str, Parity | Verdict], None] = lambda graph, found: None,
    progress: Progress = lambda what, done, of: None,
) -> Bundle:
    """Write a bundle to `target`, a folder or a .fid file, and return it. A page with pictures and all figures lies in
    the folder, or beside the file. `report` is called with each measurement, `progress` while the gate is at work.

    A bundle that is already at `target` is replaced when the new one is good. Raises FidError, and leaves nothing
    behind, when a graph differs from PyTorch by more than its tolerance; InputError when `target` holds something else.
    """
    _check_target(target)
    config = config or ExportConfig()
    parent = _parent(target)
    if target.suffix == SUFFIX:
        with plain_disk_errors("writing the bundle", parent), scratch_folder(parent / f".{target.name}") as scratch:
            bundle = export_bundle(networks, scratch / "bundle", config, report=report, progress=progress)
            bundle.pack(target)
            (bundle.folder / REPORT_FILE).replace(target.with_suffix(f".{REPORT_FILE}"))
    else:
        with plain_disk_errors("writing the bundle", parent), new_folder(target) as folder:
            _Export(networks, config, folder, report, progress).write()
    return Bundle.load(target)


class _Export:
    """One bundle in the making, in a folder that is not at its place yet."""

    def __init__(
        self,
        networks: Networks,
        config: ExportConfig,
        folder: Path,
        report: Callable[[str, Parity | Verdict], None],
        progress: Progress,
    ) -> None:
        self.networks, self.config, self.folder = networks, config, folder
        self.report, self.progress = report, progress
        original = networks.for_inference()
        self.stored = original.rounded_to_fp16() if config.fp16_weights else original
        self.stored_sface = SFace.load()
        identity = networks.identity or self.stored_sface
        self.modules, self.references = bundle_graphs(self.stored), bundle_graphs(original)
        self.references["identity"] = IdentityGraph(identity)
        self.identity = self.references["identity"]
        if config.fp16_weights:
            self.identity = IdentityGraph(rounded_to_fp16(identity))  # type: ignore[arg-type]
        self.weights = WeightsFile(folder / WEIGHTS_FILE)
        self.graphs: dict[str, Graph] = {}
        self.models: dict[str, bytes] = {}  # float32 graphs with their weights, for the conversion to FP16

    def write(self) -> None:
        """Write the graphs, measure them, and describe them in bundle.json and on the page."""
        self.write_graphs()
        arrays = shown_of = parity_inputs(self.stored, max(self.config.inputs, MIN_INPUTS))
        parity = self.measure(arrays)
        verdicts: dict[str, Verdict] = {}
        files = [self.weights.path]
        if can_refine(self.stored):
            files.append(self.write_refine(arrays, parity))
        if self.config.fp16_graphs:
            self.progress("inputs of the gate", 0, 1)
            shown_of = gate_inputs(self.stored, max(self.config.inputs, GATE_INPUTS))
            verdicts = self.write_fp16_graphs(shown_of)
        bundle = Bundle(
            folder=self.folder,
            name=self.config.name,
            version=installed_version() or "unknown",
            resolution=self.networks.resolution,
            graphs=self.graphs,
            weights=tuple(Weights(file.name, sha256(file)) for file in files),
            precision=_precision(self.config.fp16_weights, self.graphs),
            identity_size=self.networks.identity_size,
            attributes_size=self.networks.attributes_size,
            w_size=W_SIZE,
            n_styles=styles_of(self.networks.synthesis),
            provenance=self.networks.provenance,
            parity={graph: result.to_json() for graph, result in parity.items()},
        )
        bundle.save()
        bundle.verify()
        if self.config.faces:
            bundle = add_controls(bundle, self.config.faces, self.config.threads, arrays, self.progress)
        shown = _pictures(self.modules["synthesis"], bundle, verdicts.get("synthesis"), shown_of)
        (self.folder / REPORT_FILE).write_text(report_page(bundle, shown), encoding="utf-8")

    def write_graphs(self) -> None:
        """Write every float32 graph and the weights that they share."""
        whole = self.config.self_contained or self.networks.identity is not None
        modules = {**self.modules, **({"identity": self.identity} if whole else {})}
        for graph, module in modules.items():
            model = to_onnx(module)
            if self.config.fp16_graphs and graph != LIGHT:  # which is for CPUs
                self.models[graph] = model.SerializeToString()
            file = f"{graph}.onnx"
            store(model, self.folder / file, self.weights)
            self.graphs[graph] = Graph(file, sha256(self.folder / file), module.inputs, module.outputs)
        if not whole:
            module = self.references["identity"]
            self.graphs["identity"] = Graph(None, None, module.inputs, module.outputs, prepared="identity")
            modules["identity"] = module
        self.modules = modules

    def path(self, graph: str) -> Path:
        """Return the file of a float32 graph, in the bundle or prepared from fetched files."""
        file = self.graphs[graph].file
        return self.folder / file if file else prepared(graph)

    def measure(self, arrays: Arrays) -> dict[str, Parity]:
        """Compare every graph with PyTorch. Raises FidError when one differs by more than its tolerance."""
        parity: dict[str, Parity] = {}
        for graph in self.graphs:
            modules = self.modules[graph], self.references[graph]
            parity[graph] = measure(self.path(graph), *modules, arrays, self.config.threads)
            self.report(graph, parity[graph])
        _check_parity(parity)
        return parity

    def write_refine(self, arrays: Arrays, parity: dict[str, Parity]) -> Path:
        """Write the graph of the rounds that find a person's offset, measure it, and return the file of its weights."""
        more = WeightsFile(self.folder / REFINE_WEIGHTS, before=self.weights)
        options = self.config.fp16_weights, self.config.threads
        identity = self.stored_sface
        self.graphs[REFINE], parity[REFINE] = write_refine(self.stored, identity, self.folder, more, arrays, *options)
        self.report(REFINE, parity[REFINE])
        _check_parity(parity)
        self.networks.provenance["licences"] |= {"lpips": models.model("lpips").licence}
        return more.path

    def write_fp16_graphs(self, arrays: Arrays) -> dict[str, Verdict]:
        """Write the forms that compute in FP16 of those graphs that pass the gate."""
        if "identity" not in self.models:
            self.models["identity"] = to_onnx(self.identity).SerializeToString()
        verdicts: dict[str, Verdict] = {}
        for graph, description in self.graphs.items():
            if graph in (LIGHT, REFINE):
                continue

            def watch(what: str, done: int, of: int, graph: str = graph) -> None:
                self.progress(f"{graph}: {what}", done, of)

            model = onnx.load_from_string(self.models.pop(graph))
            threads = self.config.threads
            verdict = gate(model, self.path(graph), description, arrays, threads=threads, progress=watch)
            if verdict is not None:
                verdicts[graph] = verdict
                self.graphs[graph] = replace(description, fp16_graph=_store_fp16(verdict, self.folder, graph))
                self.report(graph, verdict)
        return verdicts


def with_controls(
    bundle: Bundle, target: Path, faces: int, threads: int = 2, progress: Progress | None = None
) -> Bundle:
    """Write a copy of a finished bundle to the folder `target`, with a graph that scales pose and expression, learned
    from so many generated faces; returns it. `InputError` when `target` holds something else than a bundle."""
    _check_target(target)
    _check_faces(faces)
    with plain_disk_errors("writing the bundle", _parent(target)), new_folder(target) as folder:
        for name in ("bundle.json", *(name for name, _ in bundle.files())):
            shutil.copyfile(bundle.folder / name, folder / name)
        numbers = np.random.default_rng(0)
        arrays = {name: numbers.uniform(0, 1.5, (MIN_INPUTS, 1)) for name in ("pose", "expression")}
        arrays["attributes"] = numbers.standard_normal((MIN_INPUTS, bundle.attributes_size))
        arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
        add_controls(replace(bundle, folder=folder), faces, threads, arrays, progress or (lambda what, done, of: None))
    return Bundle.load(target)


def add_controls(bundle: Bundle, faces: int, threads: int, arrays: Arrays, progress: Progress) -> Bundle:
    """Put the graph that scales pose and expression into a bundle's folder and its bundle.json; returns the bundle with
    it. `arrays`: the inputs that it is measured on. FidError when it differs from PyTorch by more than its
    tolerance."""
    composer = Composer(replace(bundle, graphs=dict(bundle.graphs)), engine="onnxruntime", threads=threads, refine=0)
    drawn = draw_faces(composer, faces, lambda done: progress("pose and expression", done, faces))
    module = ControlsGraph(learn(*drawn))
    path = bundle.folder / f"{CONTROLS}.onnx"
    store(to_onnx(module), path, None)
    found = measure(path, module, module, arrays, threads)
    _check_parity({CONTROLS: found})
    graph = Graph(path.name, sha256(path), module.inputs, module.outputs)
    parity = {**bundle.parity, CONTROLS: found.to_json()}
    bundle = replace(bundle, graphs={**bundle.graphs, CONTROLS: graph}, parity=parity)
    bundle.save()
    bundle.verify()
    return bundle


def _check_faces(faces: int) -> None:
    """Too few faces teach nothing."""
    if faces < LEAST_FACES:
        raise InputError(f"pose and expression cannot be learned from {faces} faces; give {LEAST_FACES} or more.")


def _store_fp16(verdict: Verdict, folder: Path, graph: str) -> FP16Graph:
    """Write the typed graph beside its FP32 form, unless it has to stay FP32."""
    if verdict.reason is not None:
        return FP16Graph(None, None, reason=verdict.reason, gate=verdict.to_json())
    file = f"{graph}.fp16.onnx"
    store(verdict.model.model, folder / file, None)
    return FP16Graph(
        file,
        sha256(folder / file),
        kept_fp32=verdict.kept_fp32,
        bound=verdict.model.bound,
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


def _precision(fp16_weights: bool, graphs: dict[str, Graph]) -> str:
    """What bundle.json and the commands call the bundle's arithmetic."""
    text = "fp16 weights, fp32 arithmetic" if fp16_weights else "fp32"
    return (
        f"{text}, fp16 on GPUs"
        if any(graph.fp16_graph and graph.fp16_graph.file for graph in graphs.values())
        else text
    )


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


def _check_parity(parity: dict[str, Parity]) -> None:
    """Raise FidError when a graph differs from PyTorch by more than its tolerance."""
    faults = [f"{graph}: {result.fault}" for graph, result in parity.items() if result.fault is not None]
    if faults:
        raise FidError(f"the export does not agree with PyTorch, so no bundle was written; {'; '.join(faults)}.")
