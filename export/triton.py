"""A bundle as a model repository for NVIDIA's Triton Inference Server (`fid-export --triton`).

Each graph is a model with dynamic batching: requests of many clients are computed together. `fid_compose` is an
ensemble of the attribute encoder, the mapper, and the generator: aligned crop and identity in, picture out. What
`fid-run --engine triton://HOST:PORT` opens are the single models, by the names of their graphs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.engines.triton import SHA256_KEY, digest_of, model_name
from ..runtime.errors import InputError
from ..runtime.tensor import Tensor
from ..runtime.weights.bundle import Bundle
from ..runtime.weights.cache import new_folder
from ..runtime.weights.graph import read_graph
from ..runtime.weights.prepare import prepared

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
LARGEST_BATCH = 8
QUEUE_US = 2000  # microseconds that a request may wait for others to be computed with
PER_STYLE = "per-style"  # the little graph between mapper and generator: W to W+
ENSEMBLE = "compose"
OPSET = 17


@dataclass(frozen=True)
class Model:
    """One model of the repository."""

    graph: str  # by the name that the runtime opens it with
    path: Path | None  # its ONNX file; None for one that is made here
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def write_repository(bundle: Bundle, folder: Path, plans: dict[str, bytes] | None = None) -> list[str]:
    """Write the model repository of a bundle into a new folder, and return the names of its models.

    `plans`: TensorRT engines by graph, built on the GPU that will serve them, in the place of ONNX files. Raises
    `InputError` when there is something in the folder already, and for a bundle whose mapper answers in W+.
    """
    if bundle.maps_to_w_plus:
        raise InputError(f"the bundle {bundle.name} maps into W+, and Triton is given mappers into W.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give the name of a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    models = list(_models(bundle))
    with new_folder(folder) as new:
        for model in models:
            place = new / model_name(model.graph) / "1"
            place.mkdir(parents=True)
            plan = (plans or {}).get(model.graph)
            if plan is not None:
                (place / "model.plan").write_bytes(plan)
            elif model.path is None:
                _save_per_style(model, place / "model.onnx")
            else:
                (place / "model.onnx").write_bytes(read_graph(model.path).SerializeToString())  # weights inside
            (place.parent / "config.pbtxt").write_text(_config(model, "onnx" if plan is None else "plan"))
        ensemble = new / model_name(ENSEMBLE)
        (ensemble / "1").mkdir(parents=True)  # Triton wants a version, empty for an ensemble
        (ensemble / "config.pbtxt").write_text(_ensemble(bundle, {model.graph: model for model in models}))
    return [*(model_name(model.graph) for model in models), model_name(ENSEMBLE)]


def _models(bundle: Bundle) -> Iterator[Model]:
    """Every graph of a bundle, its mapping network, and what stands between mapper and generator."""
    for name, graph in bundle.graphs.items():
        path = bundle.fp16_graph_path(name) or bundle.graph_path(name)
        yield Model(name, path, graph.inputs, graph.outputs)
    if "mapping" not in bundle.graphs:
        z, w = (Tensor(name, ("batch", bundle.w_size), "float32") for name in ("z", "w"))
        yield Model("mapping", prepared("mapping"), (z,), (w,))
    w = Tensor("w", ("batch", bundle.w_size), "float32")
    offset, w_plus = (
        Tensor(name, ("batch", bundle.n_styles, bundle.w_size), "float32") for name in ("w_plus_offset", "w_plus")
    )
    yield Model(PER_STYLE, None, (w, offset), (w_plus,))


def _save_per_style(model: Model, target: Path) -> None:
    """W+ = w for every style + offset."""
    import onnx
    from numpy import array
    from onnx import TensorProto, helper, numpy_helper

    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.shape)) for t in side]
        for side in (model.inputs, model.outputs)
    )
    axis = numpy_helper.from_array(array([1]), "axis")
    nodes = [
        helper.make_node("Unsqueeze", ["w", "axis"], ["one"]),
        helper.make_node("Add", ["one", "w_plus_offset"], ["w_plus"]),
    ]
    graph = helper.make_graph(nodes, model.graph, inputs, outputs, [axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9), target)


def _batch_of(tensors: Sequence[Tensor]) -> int:
    """The largest batch of a model; 0 for one of a fixed shape."""
    return LARGEST_BATCH if all(tensor.shape[:1] == ("batch",) for tensor in tensors) else 0


def _ports(kind: str, tensors: Sequence[Tensor], batch: int) -> str:
    rows = []
    for tensor in tensors:
        shape = tensor.shape[1:] if batch else tensor.shape
        dims = ", ".join(str(-1 if isinstance(side, str) else side) for side in shape)
        rows.append(f'  {{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype]} dims: [ {dims} ] }}')
    return f"{kind} [\n" + ",\n".join(rows) + "\n]\n"


def _config(model: Model, form: str) -> str:
    """config.pbtxt of one model; `form`: "onnx" or "plan"."""
    batch = _batch_of([*model.inputs, *model.outputs])
    platform = {"onnx": "onnxruntime_onnx", "plan": "tensorrt_plan"}[form]
    text = f'name: "{model_name(model.graph)}"\nplatform: "{platform}"\n'
    text += f'default_model_filename: "model.{form}"\nmax_batch_size: {batch}\n'
    text += _ports("input", model.inputs, batch) + _ports("output", model.outputs, batch)
    text += "instance_group [ { count: 1 kind: KIND_AUTO } ]\n"
    if batch:
        text += f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_US} }}\n"
    if model.path is not None:
        digest = digest_of(model.path)
        text += f'parameters {{ key: "{SHA256_KEY}" value {{ string_value: "{digest}" }} }}\n'
    return text


def _ensemble(bundle: Bundle, models: dict[str, Model]) -> str:
    """config.pbtxt of the ensemble: every tensor goes by its own name, so a step takes what an earlier one gave."""
    steps = [models[name] for name in ("attributes", "mapper", PER_STYLE, "synthesis")]
    given = {tensor.name for step in steps for tensor in step.outputs}
    inputs = {t.name: t for step in steps for t in step.inputs if t.name not in given}
    text = f'name: "{model_name(ENSEMBLE)}"\nplatform: "ensemble"\nmax_batch_size: {LARGEST_BATCH}\n'
    text += _ports("input", list(inputs.values()), LARGEST_BATCH)
    text += _ports("output", models["synthesis"].outputs, LARGEST_BATCH)
    rows = []
    for step in steps:
        maps = "".join(
            f'\n      {side}_map {{ key: "{tensor.name}" value: "{tensor.name}" }}'
            for side, tensors in (("input", step.inputs), ("output", step.outputs))
            for tensor in tensors
        )
        rows.append(f'    {{\n      model_name: "{model_name(step.graph)}"\n      model_version: -1{maps}\n    }}')
    return text + "ensemble_scheduling {\n  step [\n" + ",\n".join(rows) + "\n  ]\n}\n"
