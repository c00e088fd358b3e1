"""How long does TensorRT-RTX take to build each graph ahead of time, and how large are the engines?

Every graph of the shipped bundle, the mapping network and the 1024 px generator, in FP32 and, those of our own with
convolutions, typed in FP16; for compute capabilities 8.0, 8.6, 8.9 and 12.0 at once, with a batch of 1 to 4. Needs no
GPU. Wall seconds of one build each, and CPU seconds of the process, which a busy machine changes less.

    python benchmarks/build_engines.py -o benchmarks/results/engines.json
"""

import json
import tempfile
import time
from pathlib import Path

import click
import onnx
from fid.export.fp16.convert import to_fp16
from fid.export.graphs import GraphModule, SynthesisGraph, bundle_graphs
from fid.export.read import read_networks
from fid.export.to_onnx import to_onnx
from fid.runtime.engines.tensorrt.build import RTX_TARGETS, Batch, build, library
from fid.runtime.weights import catalogue as models
from fid.runtime.weights.bundle import CONTROLS, REFINE, Bundle
from fid.runtime.weights.prepare import prepared
from fid.trainer.networks.mobilestylegan import Synthesis
from machine import machine_record

PREPARED = ("mapping", "synthesis-1024")
HALF = ("attributes", "synthesis", "reenact", "synthesis-1024")


def module(name: str) -> GraphModule:
    """Return a graph as PyTorch module, which the exporter starts from."""
    if name == "synthesis-1024":
        return SynthesisGraph(Synthesis.load(1024, models.ensure("generator")), 1024)
    return bundle_graphs(read_networks(None, None).for_inference())[name]


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="OUT.json.")
def main(output: Path | None) -> None:
    machine = machine_record()
    lib, bundle = library("tensorrt-rtx"), Bundle.load()
    paths = {name: bundle.graph_path(name) for name in bundle.graphs if name not in (CONTROLS, REFINE)} | {
        name: prepared(name) for name in PREPARED
    }
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(name, "fp32", path) for name, path in paths.items()]
        for name in HALF:
            jobs.append((name, "fp16", Path(folder) / f"{name}.onnx"))
            onnx.save(to_fp16(to_onnx(module(name))).model, jobs[-1][2])
        for name, precision, path in jobs:
            wall, cpu = time.perf_counter(), time.process_time()
            plan = build(lib, path, Batch(), targets=RTX_TARGETS).plan
            engines[f"{name} {precision}"] = {
                "wall_s": round(time.perf_counter() - wall, 2),
                "cpu_s": round(time.process_time() - cpu, 2),
                "mb": round(len(plan) / 1e6, 1),
            }
            print(
                f"{name:15} {precision}", *(f"{key} {value}" for key, value in engines[f"{name} {precision}"].items())
            )
    record = {
        "benchmark": "build_engines",
        "library": str(lib),
        "compute_capabilities": RTX_TARGETS,
        "batch": str(Batch()),
        "engines": engines,
        "machine": machine,
    }
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
