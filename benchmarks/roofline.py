"""How close does each graph come to what this machine can do, and which layers have most to gain?

The roof is measured first: the rate of large float32 matrix products and of copying memory. Then ONNX Runtime's
profile gives, for every node of the graph as it runs it, its time and the shapes of its inputs and outputs: from these
come its operations (2 for a multiply-add) and the bytes that it has to read and write. A node's floor is the larger of
operations / matrix rate and bytes / copy rate. Layers of the generator are named by their block's resolution and place.
OpenVINO's own profile says the same of its nodes, in float32 and in bfloat16, where the floor is by the matrix rate of
bfloat16 and two bytes a number.

    python benchmarks/roofline.py --graphs reenact
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from engines import CPU_ENGINES, GRAPHS, NotHereError, graph_path, noise
from fid.runtime.engines.machine import physical_cores
from machine import machine_record
from records import QUICK_RESULTS, RESULTS, add_run
from roofline_openvino import profile as openvino_profile

ONE_FILE = tuple(graph for graph in GRAPHS if graph != "reenact-1024")
GROUPS = {
    "pointwise convolution": ("Conv 1x1", "MatMul", "FusedMatMul"),
    "depthwise convolution": ("Conv depthwise",),
    "dense convolution": ("Conv dense",),
    "perceptron, styles": ("Gemm", "FusedGemm"),
    "wavelet": ("ConvTranspose", "DepthToSpace", "Split", "Slice", "Sub", "Concat"),
    "layout": ("ReorderInput", "ReorderOutput", "Transpose"),
}  # what is in none is elementwise


def roof(threads: int, quick: bool) -> dict[str, float]:
    """Return the best of several: GFLOP/s of a matrix product in float32 and bfloat16, GB/s of a copy (read and
    written)."""
    import torch

    torch.set_num_threads(threads)
    size, tries = (1024, 5) if quick else (2048, 20)
    a, b = torch.randn(size, size), torch.randn(size, size)
    source = torch.randn(1 << 24)  # 64 MB: more than the caches hold
    target = torch.empty_like(source)
    product = min(_seconds(lambda: torch.mm(a, b)) for _ in range(tries))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(tries))
    a, b = a.bfloat16(), b.bfloat16()
    low = min(_seconds(lambda: torch.mm(a, b)) for _ in range(tries))
    return {
        "matrix_gflops": round(2 * size**3 / product / 1e9, 1),
        "matrix_bf16_gflops": round(2 * size**3 / low / 1e9, 1),
        "copy_gb_s": round(2 * 4 * len(source) / copy / 1e9, 1),
    }


def measure(graph: str, engine: str, threads: int, runs: int, limits: Mapping[str, float]) -> dict[str, Any]:
    """Measure one graph on one engine: its nodes, the layer groups, and the three nodes with most to gain."""
    if engine == CPU_ENGINES[0]:
        nodes = profile(graph, threads, runs)
    else:
        nodes = openvino_profile(graph, threads, runs, "bf16" if engine.endswith("bf16") else "f32")
    nodes = [node | {"group": _group(node["kind"])} | _floor(node, limits) for node in nodes]
    nodes = [node | {"layer": layer} for node, layer in zip(nodes, layers(nodes), strict=True)]
    groups: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in nodes:
        for key in ("ms", "gflop", "mb", "floor_ms"):
            groups[node["group"]][key] += node[key]
    total = {key: sum(group[key] for group in groups.values()) for key in ("ms", "gflop", "mb", "floor_ms")}
    most = sorted(nodes, key=lambda node: node["floor_ms"] - node["ms"])[:3]
    return {
        "verdict": verdict(name_of(graph, engine), total, most),
        "total": _rounded(total),
        "groups": {name: _rounded(group) for name, group in sorted(groups.items(), key=lambda item: -item[1]["ms"])},
        "most_to_gain": [_rounded(node) for node in most],
        "nodes": [_rounded(node) for node in sorted(nodes, key=lambda node: -node["ms"])[:40]],
    }


def name_of(graph: str, engine: str) -> str:
    """Return how a graph on an engine is called in the record: ONNX Runtime goes without saying."""
    return graph if engine == CPU_ENGINES[0] else f"{graph} on {engine}"


def verdict(graph: str, total: Mapping[str, float], most: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence: how close a graph comes to its floor, and which layers lie furthest above theirs."""
    gains = ", ".join(f"{node['layer']} ({node['ms'] - node['floor_ms']:.1f} ms)" for node in most)
    share = 100 * total["floor_ms"] / total["ms"]
    return (
        f"{graph} takes {total['ms']:.1f} ms and its floor is {total['floor_ms']:.1f} ms, {share:.0f} % of that. "
        f"Most to gain: {gains}."
    )


def layers(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which layer each node is: "128 px block, conv2, pointwise convolution", or its kind and name elsewhere.

    The generator begins with its only dense convolution, 512 channels at 4 px. From there every depthwise and every
    pointwise convolution at a resolution is the next layer of that block, and after two of them of the to-image head;
    12 channels are the bands of its picture.
    """
    found, begun, seen = [], False, Counter()
    for node in nodes:
        shape, group = [int(size) for size in node["output"].split("x") if size], node["group"]
        side = math.isqrt(shape[-1]) if len(shape) == 3 else shape[-1] if len(shape) == 4 else 0
        if node["kind"] == "Conv dense" and shape[1:] == [512, 4, 4]:
            begun = True
            found.append("4 px, dense convolution")
        elif begun and group in ("pointwise convolution", "depthwise convolution") and side:
            bands = shape[1] == 12
            seen[side, group] += 0 if bands else 1
            number = seen[side, group]
            place = "bands" if bands else f"conv{number}" if number <= 2 else f"conv{number - 2}"
            part = "to-image head" if bands or number > 2 else "block"
            found.append(f"{side} px {part}, {place}, {group}")
        else:
            found.append(f"{f'{side} px, ' if begun and side else ''}{node['kind']} {node['name']}")
    return found


def profile(graph: str, threads: int, runs: int) -> list[dict[str, Any]]:
    """Return the nodes as ONNX Runtime runs them: name, kind, group, median ms, GFLOP and MB."""
    import onnxruntime as ort
    from fid.runtime.engines import ort as session_onnxruntime

    with TemporaryDirectory() as folder:
        options = session_onnxruntime.session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        model = session_onnxruntime.model_for(graph_path(graph), "CPUExecutionProvider", options)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        arrays = noise(graph, 1)
        for _ in range(runs):
            session.run(None, dict(arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    details: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e3)
            details[event["name"]] = event["args"]
    warm = max(1, runs // 4)
    return [
        {"name": name.removesuffix("_kernel_time"), "ms": float(np.median(ms[warm:] or ms)), **count(details[name])}
        for name, ms in times.items()
    ]


def count(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind, group, GFLOP and MB of a node from the types and shapes of its inputs and outputs in a profile."""
    inputs, outputs = _tensors(details["input_type_shape"]), _tensors(details["output_type_shape"])
    kind, size = str(details["op_name"]), math.prod(outputs[0][1]) if outputs else 0
    flop = float(size)  # elementwise: one each
    if kind in ("Conv", "FusedConv"):
        weight = inputs[1][1]
        c_out, c_in, *kernel = weight
        kind = "Conv depthwise" if c_in == 1 else "Conv 1x1" if math.prod(kernel) == 1 else "Conv dense"
        flop = 2 * size * math.prod(weight) / c_out
    elif kind == "ConvTranspose":  # the profile lacks its weights; as the wavelets: one channel a group, no overlap
        flop = 2 * math.prod(inputs[0][1]) * math.prod(outputs[0][1][2:]) / math.prod(inputs[0][1][2:])
    elif kind in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"):
        flop = 2 * size * inputs[0][1][-1]
    elif kind in ("Reshape", "Unsqueeze", "Squeeze", "Shape", "ReorderInput", "ReorderOutput", "Transpose"):
        flop = 0.0
    moved = sum(width * math.prod(shape) for width, shape in (*inputs, *outputs))
    if kind in ("Reshape", "Unsqueeze", "Squeeze", "Shape"):
        moved = 0  # views
    group = _group(kind)
    shape = "x".join(map(str, outputs[0][1])) if outputs else ""
    return {"kind": kind, "group": group, "output": shape, "gflop": flop / 1e9, "mb": moved / 1e6}


def _group(kind: str) -> str:
    return next((name for name, kinds in GROUPS.items() if kind in kinds), "elementwise")


def _tensors(ports: list[dict[str, list[int]]]) -> list[tuple[int, list[int]]]:
    """(bytes of a number, shape) of each tensor."""
    widths = {"uint8": 1, "bool": 1, "float16": 2, "int64": 8, "double": 8}
    return [(widths.get(dtype, 4), shape) for port in ports for dtype, shape in port.items()]


def _floor(node: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, float]:
    rate = limits["matrix_bf16_gflops" if node.get("bf16") else "matrix_gflops"]
    return {"floor_ms": 1e3 * max(node["gflop"] / rate, node["mb"] / 1e3 / limits["copy_gb_s"])}


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    """With `of_roof`, the share of the time that the floor is; all numbers short."""
    result = {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
    return result | {"of_roof": round(record["floor_ms"] / record["ms"], 3) if record["ms"] else None}


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--graphs", multiple=True, type=click.Choice(ONE_FILE), help="May be repeated. Default: all.")
@click.option("--engines", multiple=True, type=click.Choice(CPU_ENGINES), help="May be repeated. Default: all.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Few runs, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(
    graphs: tuple[str, ...], engines: tuple[str, ...], threads: int | None, quick: bool, output: Path | None
) -> None:
    machine, threads = machine_record(), threads or physical_cores()
    limits = roof(threads, quick)
    figures = {}
    for graph in graphs or ONE_FILE:
        for engine in engines or CPU_ENGINES:
            with suppress(NotHereError):  # the machine's record says what it has
                figures[name_of(graph, engine)] = measure(graph, engine, threads, 4 if quick else 40, limits)
    again = roof(threads, quick)  # a machine that slowed down or sped up meanwhile shows here
    run = {"benchmark": "roofline", "quick": quick, "partial": bool(graphs or engines)}
    run |= {"settings": {"threads": threads}}
    path = add_run(
        output or (QUICK_RESULTS if quick else RESULTS),
        run | {"roof": limits, "roof_after": again, "graphs": figures},
        machine,
    )
    verdicts = {graph: row["verdict"] for graph, row in figures.items()}
    click.echo(json.dumps({"record": path.name, "roof": limits, "graphs": verdicts}))


if __name__ == "__main__":
    main()
