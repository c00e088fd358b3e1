"""How fast is the same work with what a user would take instead?

- `random-face`, whose generator fid took over: w to a 1024 px picture, the same weights. Its own engine calls an
  interface that OpenVINO dropped in 2024; with --own-environment it is tried as its documentation says, in an
  environment of its own, with the last OpenVINO that has the interface and, where that fails, with an older one. What
  it does is also run on today's OpenVINO: read its files, compile them for the CPU, infer, and turn the result into a
  picture with its own formula.
- OpenCV's FaceRecognizerSF: an aligned face to a code, the same SFace weights. OpenCV 5 refuses the file;
  --own-environment measures the last OpenCV 4 too.

Where a peer does something else besides (detect, align, store), it is not measured here. All take turns in one process
with the same number of threads, but for those in environments of their own, which run by themselves.

    python benchmarks/peers.py --own-environment
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from accuracy import compare
from engines import CPU_ENGINES, NotHereError, Opened, as_w_plus, inputs, open_engine
from fid.runtime.assets import installed_version
from fid.runtime.engines.machine import physical_cores
from fid.runtime.face.crop import identity_view
from fid.runtime.weights import catalogue as models
from machine import machine_record
from records import QUICK_RESULTS, RESULTS, add_run
from timing import FULL, QUICK, Plan, interleaved, speedup, summary

OPENCV = "OpenCV FaceRecognizerSF"
LAST_OPENCV_4 = "4.14.0.94"
OLD_OPENVINO = {"2023.3.0": sys.executable, "2022.3.1": "python3.10"}
"""With the interface that random-face calls, the last first, and a Python that it has wheels for."""
APART = "by itself, in an environment of its own: not in turns with the others"
OWN_ENGINE = """
import json, statistics, time
import numpy, random_face
engine = random_face.get_engine()
style = engine.truncate(engine.var_to_style(numpy.random.normal(size=(1, 512)).astype("float32")))
times = []
for _ in range(15):
    start = time.perf_counter()
    engine.style_to_img(style)
    times.append(1e3 * (time.perf_counter() - start))
print(json.dumps({"p50_ms": round(statistics.median(times[3:]), 3), "min_ms": round(min(times[3:]), 3)}))
"""
OWN_OPENCV = """
import json, statistics, sys, time
import cv2, numpy
cv2.setNumThreads(int(sys.argv[3]))
recogniser, views = cv2.FaceRecognizerSF.create(sys.argv[1], ""), numpy.load(sys.argv[2])
codes = [recogniser.feature(view)[0].tolist() for view in views]
times = []
for _ in range(63):
    start = time.perf_counter()
    recogniser.feature(views[0])
    times.append(1e3 * (time.perf_counter() - start))
figures = {"p50_ms": round(statistics.median(times[3:]), 3), "min_ms": round(min(times[3:]), 3)}
print(json.dumps({**figures, "codes": codes}))
"""


def synthesis(threads: int, plan: Plan) -> dict[str, Any]:
    """Measure w to a picture: random-face's network on OpenVINO, fid at 1024 px and at 256 px, there by both
    generators."""
    arrays = inputs("synthesis", 4)["w_plus"][:, 0]
    infer = random_face(threads)
    calls: dict[str, Callable[[], object]] = {
        "random-face on OpenVINO, network": lambda: infer(arrays[:1]),
        "random-face on OpenVINO, network and picture": lambda: as_picture(infer(arrays[:1])),
    }
    forms = {"1024 px": "synthesis-1024", "256 px": "synthesis", "256 px light": "synthesis-light"}
    graph_of = {f"fid {form}": graph for form, graph in forms.items()}
    opened, missing = _opened(graph_of, threads)
    given = {name: as_w_plus(arrays, graph_of[name.rpartition(", ")[0]]) for name in opened}
    calls |= {name: partial(engine.run, {"w_plus": given[name][:1]}) for name, engine in opened.items()}
    turns = interleaved(calls, plan)
    rows = {name: summary(ms) | {"speedup": speedup(turns[next(iter(turns))], ms)} for name, ms in turns.items()}
    theirs = np.stack([as_picture(infer(w[None]))[..., ::-1] for w in arrays])
    for name, engine in opened.items():
        ours = np.concatenate([engine.run({"w_plus": one[None]}) for one in given[name]])
        if ours.shape[1] == 256:
            seen = np.stack([cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA) for image in theirs])
        else:
            seen = theirs
        rows[name]["against_random_face"] = compare(ours, seen)
    return rows | missing


def _opened(graphs: Mapping[str, str], threads: int) -> tuple[dict[str, Opened], dict[str, dict[str, str]]]:
    """Graphs, by the name to show, on every CPU engine: "NAME, ENGINE" -> what is opened, and -> why it is not."""
    opened, missing = {}, {}
    for name, graph in graphs.items():
        for engine in CPU_ENGINES:
            try:
                opened[f"{name}, {engine}"] = open_engine(engine, graph, threads)
            except NotHereError as problem:
                missing[f"{name}, {engine}"] = {"reason": str(problem)}
    return opened, missing


def random_face(threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """style_to_img of random-face's engine: w [1, 512] -> picture [3, 1024, 1024] about -1..1.

    In the precision that OpenVINO takes by itself, as the engine leaves it to it: bfloat16 where the CPU has it.
    """
    import openvino

    core = openvino.Core()
    folder = models.ensure("generator")
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(folder / "SynthesisNetwork.xml", "CPU", options).create_infer_request()
    return lambda w: request.infer([w])[0][0]


def as_picture(image: np.ndarray) -> np.ndarray:
    """Return random-face's formula for a network's result [3, S, S]: BGR uint8 [S, S, 3]."""
    scaled = (np.clip(image, -1, 1) + 1) / (2 + 1e-5)
    return np.clip(scaled * 255 + 0.5, 0, 255).transpose(1, 2, 0).astype(np.uint8)[:, :, ::-1]


def identity(threads: int, plan: Plan, own: bool) -> dict[str, Any]:
    """Measure an aligned face to SFace's code: OpenCV's own class, fid's graph, which begins with the crop's
    resampling.

    `own` adds the last OpenCV 4, in an environment of its own.
    """
    cv2.setNumThreads(threads)
    weights = models.ensure("sface") / models.model("sface").files[0].name
    recogniser = cv2.FaceRecognizerSF.create(str(weights), "")
    crops = inputs("identity", 4)["crop"]
    views = [np.rint(view).astype(np.uint8)[..., ::-1].copy() for view in identity_view(crops)]
    theirs, rows, calls = None, {}, {}
    try:
        theirs = np.concatenate([recogniser.feature(view) for view in views])
        calls[OPENCV] = lambda: recogniser.feature(views[0])
    except cv2.error as error:
        rows[OPENCV] = {"reason": f"OpenCV {cv2.__version__}: {error.err.strip() or error}"[:200]}
    if own:
        apart = own_opencv(weights, np.stack(views), threads)
        codes = apart.pop("codes", None)
        theirs = np.array(codes, np.float32) if theirs is None and codes else theirs
        rows[f"OpenCV {LAST_OPENCV_4} FaceRecognizerSF"] = apart
    opened, missing = _opened({"fid": "identity"}, threads)
    rows |= missing
    calls |= {name: lambda run=engine.run: run({"crop": crops[:1]}) for name, engine in opened.items()}
    turns = interleaved(calls, plan)
    for name, ms in turns.items():
        rows[name] = summary(ms) | ({"speedup": speedup(turns[OPENCV], ms)} if OPENCV in turns else {})
    for name, engine in opened.items():
        if theirs is not None:
            theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
            ours = np.concatenate([engine.run({"crop": c[None]}) for c in crops])
            rows[name]["against_opencv"] = compare(ours, theirs)
    return rows


def own_engines() -> dict[str, Any]:
    """Measure random-face as its documentation says, on the last OpenVINO that may run it, and on older ones until one
    does."""
    rows: dict[str, Any] = {}
    for version, python in OLD_OPENVINO.items():
        entry = models.model("generator")
        packages = [f"openvino=={version}", "numpy<2", "opencv-python-headless", "gdown"]
        row = own_environment(python, [packages, ["--no-deps", f"{entry.package}=={entry.version}"]], OWN_ENGINE)
        rows[f"OpenVINO {version}"] = row | {"random-face": entry.version}
        if "p50_ms" in row:
            break
    return rows


def own_opencv(weights: Path, views: np.ndarray, threads: int) -> dict[str, Any]:
    """Return SFace's codes of faces uint8 [N, 112, 112, 3], BGR, by the last OpenCV 4, and ms of the first one."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "views.npy"
        np.save(pictures, views)
        packages = [f"opencv-python-headless=={LAST_OPENCV_4}"]
        return own_environment(sys.executable, [packages], OWN_OPENCV, str(weights), str(pictures), str(threads))


def own_environment(python: str, packages: Sequence[Sequence[str]], script: str, *arguments: str) -> dict[str, Any]:
    """Return what a script prints as JSON in a fresh environment with these packages, or the reason why it prints
    nothing."""
    with tempfile.TemporaryDirectory() as name:
        own = str(Path(name) / "bin" / "python")
        steps = [[python, "-m", "venv", name], *([own, "-m", "pip", "install", "--quiet", *line] for line in packages)]
        for step in steps:
            try:
                subprocess.run(step, capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                what = f"pip could not install {step[-1]}" if "pip" in step else f"{python} made no environment"
                return {"reason": what, "note": APART}
        done = subprocess.run([own, "-c", script, *arguments], capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        problem = next((line for line in said if "Error" in line and "File" not in line), said[-1] if said else "")
        return {"reason": problem[:200], "note": APART}
    return json.loads(done.stdout.splitlines()[-1]) | {"note": APART}


@click.command(help=__doc__)
@click.option("--own-environment", "own", is_flag=True, help="Try older peers too; installs packages.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Few runs, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(own: bool, threads: int | None, quick: bool, output: Path | None) -> None:
    machine, plan, threads = machine_record(), QUICK if quick else FULL, threads or physical_cores()
    figures = {"synthesis": synthesis(threads, plan), "identity": identity(threads, plan, own)}
    if own:
        figures["random-face's own engine"] = own_engines()
    versions = {name: installed_version(name) for name in ("openvino", "opencv-python-headless", "onnxruntime")}
    versions["random-face"] = models.model("generator").version
    run = {
        "benchmark": "peers",
        "quick": quick,
        "settings": {"threads": threads, "plan": plan.text, "versions": versions},
    }
    path = add_run(output or (QUICK_RESULTS if quick else RESULTS), run | {"peers": figures}, machine)
    speedups = {name: row.get("speedup") for name, row in figures["synthesis"].items()}
    click.echo(json.dumps({"record": path.name, "synthesis": speedups}))


if __name__ == "__main__":
    main()
