"""What tables do the records of the benchmarks give? For `report.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

from fid.trainer.evaluate.tables import Table

Runs = Mapping[str, Mapping[str, Any]]


def tables(runs: Runs) -> Iterator[Table]:
    """Yield all tables of the last runs of one machine and commit."""
    if "latency" in runs:
        yield from latency_tables(runs["latency"])
    if "quality" in runs:
        yield from quality_tables(runs["quality"])
    if "scaling" in runs:
        yield from scaling_tables(runs["scaling"])
    if "roofline" in runs:
        yield from roofline_tables(runs["roofline"])
    if "peers" in runs:
        yield from peers_tables(runs["peers"])
    if "gpu" in runs:
        yield from gpu_tables(runs["gpu"])


def latency_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield one table for each graph and batch, one for the whole frame, one for load and memory."""
    settings = run["settings"]
    note = f"{settings['threads']} threads; {settings['plan']}. Times are of a call, pictures a second at the median."
    for title, rows in run["graphs"].items():
        picture = any("psnr_db" in row.get("against_torch", {}) for row in rows.values())
        accuracy = ("max", "mean", "PSNR dB", "LPIPS", "identity cosine") if picture else ("max", "mean", "cosine")
        body = []
        for engine, row in by_speed(rows):
            times = [_times(row), *(_number(row.get(key), 2) for key in ("p50_ms", "p95_ms", "p99_ms", "min_ms"))]
            body.append([engine, *times, _number(row.get("per_second"), 1), *_accuracy(row, picture)])
        unit = "grey levels" if picture else "share of the code's length"
        yield Table(
            f"{title[0].upper()}{title[1:]}",
            ("engine", "against torch", "p50 ms", "p95", "p99", "min", "a second", *accuracy),
            body,
            (
                note,
                f"Accuracy is against PyTorch in float32 with the same weights; max and mean in {unit}.",
                *_reasons(rows),
            ),
        )
    if run["frame"]:
        stages = next((row["stages_ms"] for row in run["frame"].values() if "stages_ms" in row), {})
        body = [
            [
                engine,
                _times(row),
                *(_number(row.get(key), 1) for key in ("p50_ms", "p95_ms", "p99_ms")),
                _number(row.get("per_second"), 1),
                *(_number(row.get("stages_ms", {}).get(s), 1) for s in stages),
            ]
            for engine, row in by_speed(run["frame"])
        ]
        height, width = settings["frame_px"]
        yield Table(
            "Whole frame",
            ("engine", "against torch", "p50 ms", "p95", "p99", "a second", *stages),
            body,
            (
                f"{width} x {height} JPEG in and out, in memory. Only reenact changes its engine. Stages are medians.",
                *_reasons(run["frame"]),
            ),
        )
    body = [
        [f"{graph}, {engine}", *(_number(row.get(key), 2) for key in ("cold_start_s", "open_s")), *_memory(row)]
        for graph, rows in run["fresh_process"].items()
        for engine, row in rows.items()
    ]
    if body:
        yield Table(
            "Load and memory",
            ("", "cold start s", "open s", "peak RAM MB", "of it before opening", "peak VRAM MB"),
            body,
            ("A fresh process each: start to third output, opening and building alone, peak of the process.",),
        )


def quality_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the paper's Table 1 and Table 2, by engine. Of dlib's codes, whose cosines are all near 1, what it
    accepts."""
    rows, again = [], []
    for engine, row in run["engines"].items():
        if "reason" in row:
            rows.append([engine, "does not run", *[""] * 8])
            continue
        sface, dlib = row["identity"]["SFace"], row["identity"].get("dlib")
        points = "dlib" if "dlib" in row["expression"] else "face mesh"
        difference, own = row["against_torch"], row["reconstruction"]
        rows.append(
            [engine, *(_number(sface[of]["cosine"]["mean"], 4) for of in ("output", "leak"))]
            + [_number(dlib and dlib["output"]["accept"], 3), _number(row["frechet_distance"]["output"], 4)]
            + [_number(row["expression"][points]["output"]["mean"], 4)]
            + [_number(row["pose"][points]["output"]["mean"], 3)]
            + [_number(difference[key], digits) for key, digits in (("psnr_db", 1), ("lpips", 5))]
            + [_number(difference["identity_cosine_min"], 5)]
        )
        again.append(
            [
                engine,
                *(_number(own[key]["mean"], digits) for key, digits in (("rmse", 3), ("psnr", 2), ("lpips", 4))),
                _number(own["identity"]["SFace"]["cosine"]["mean"], 4),
            ]
        )
    settings = run["settings"]
    pairs = f"{settings['pairs']} generated pairs, psi {settings['psi']}, the same for all"
    note = f"{pairs}; expression is a share of the crop."
    if "threads" in settings:
        note = f"{settings['threads']} threads; {note}"
    measures = ("SFace cosine", "SFace leak", "dlib accepts", "Fréchet distance", "expression", "pose deg")
    yield Table(
        "Table 1 by engine",
        ("engine", *measures, "PSNR to torch", "LPIPS", "identity min"),
        rows,
        (note, *_reasons(run["engines"])),
    )
    yield Table("Table 2 by engine", ("engine", "RMSE", "PSNR dB", "LPIPS", "SFace cosine"), again, (note,))


def scaling_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield one table for each thing that grows."""
    for name, engines in run["by"].items():
        if name in ("clip_length", "faces"):
            keys = ("resident_mb", "growth_mb", "ms_a_frame") if name == "clip_length" else ("found", "p50_ms")
            header = (name.replace("_", " "), *(key.replace("_", " ") for key in keys))
            body = [[size, *(_number(row.get(key), 1) for key in keys)] for size, row in engines.items()]
        elif name == "frame_size":
            header = ("frame size", *(f"{stage}, ms" for stage in next(iter(engines.values()))))
            body = [[size, *(_number(value, 2) for value in row.values())] for size, row in engines.items()]
        else:
            header = (name, "engine", "p50 ms", "a second")
            body = [
                [size, engine, row.get("reason") or _number(row.get("p50_ms"), 2), _number(row.get("per_second"), 2)]
                for engine, rows in engines.items()
                for size, row in rows.items()
            ]
        yield Table(f"Scaling with {name.replace('_', ' ')}", header, body)


def roofline_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables of the groups of every graph, its verdict, and the layers with most to gain."""
    roof = run["roof"]
    note = f"Roof: {roof['matrix_gflops']:.0f} GFLOP/s in matrix products, {roof['copy_gb_s']:.1f} GB/s in copies."
    verdicts = [figures["verdict"] for figures in run["graphs"].values() if "verdict" in figures]
    body = [
        [
            f"{graph}: {name}",
            *(_number(group[key], 2) for key in ("ms", "gflop", "mb", "floor_ms")),
            _percent(group["of_roof"]),
        ]
        for graph, figures in run["graphs"].items()
        for name, group in {"all": figures["total"], **figures["groups"]}.items()
    ]
    yield Table(
        "Roofline", ("graph and layers", "ms", "GFLOP", "MB", "floor ms", "of the roof"), body, (note, *verdicts)
    )
    body = [
        [graph, node.get("layer", node["name"]), node["output"], _number(node["ms"], 2), _number(node["floor_ms"], 2)]
        for graph, figures in run["graphs"].items()
        for node in figures["most_to_gain"]
    ]
    yield Table("Most to gain", ("graph", "layer", "output", "ms", "floor ms"), body, (note,))


def peers_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what a user would take instead."""
    versions = ", ".join(f"{name} {version}" for name, version in run["settings"]["versions"].items() if version)
    for title, rows in run["peers"].items():
        if "reason" in rows or "p50_ms" in rows:
            rows = {title: rows}
        body, notes = [], [f"{name} ran {row['note']}" for name, row in rows.items() if "note" in row]
        for name, row in rows.items():
            difference = row.get("against_random_face") or row.get("against_opencv") or {}
            near = f"LPIPS {difference['lpips']}" if "lpips" in difference else _number(difference.get("cosine_min"), 5)
            times = [row.get("reason") or _number(row["p50_ms"], 2), _number(row.get("per_second"), 2)]
            body.append([name, *times, _ratio(row.get("speedup")), near])
        yield Table(
            f"Peers: {title}", ("", "p50 ms", "a second", "against the peer", "its output"), body, (versions, *notes)
        )


def gpu_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what gpu.py measured: fid's sessions, the whole frame, PyTorch in its forms and
    precisions."""
    header = ("p50 ms", "p95", "p99", "a second", "ready s")
    tests = run["tests"].get("last_line") or run["tests"].get("reason", "did not run")
    sessions = {f"{graph}, {engine}": row for engine, rows in run["sessions"].items() for graph, row in rows.items()}
    yield Table(
        "GPU: sessions",
        ("graph and engine", *header, "provider"),
        [[name, *_gpu_times(row), row.get("provider", "does not run")] for name, row in sessions.items()],
        (
            "Host memory to host memory, batch 1.",
            f"tests/gpu: {tests}",
            *(f"{name}: {row['fallback']}" for name, row in sessions.items() if row.get("fallback")),
            *_reasons(sessions),
        ),
    )
    if run["frame"]:
        body = [
            [name, *_gpu_times(row)[:4], *(_number(ms, 1) for ms in row.get("stages_ms", {}).values())]
            for name, row in run["frame"].items()
        ]
        stages = [stage for row in run["frame"].values() for stage in row.get("stages_ms", {})]
        yield Table("GPU: whole frame", ("session", *header[:4], *stages), body, _reasons(run["frame"]))
    forms = {
        f"{graph}, {batch}, {form}, {precision}": row
        for graph, batches in run["torch"].items()
        for batch, found in batches.items()
        for form, precisions in found.items()
        for precision, row in precisions.items()
    }
    yield Table(
        "GPU: PyTorch",
        ("graph and form", *header, "PSNR to FP32", "peak VRAM MB"),
        [
            [name, *_gpu_times(row), _number(row.get("psnr_db"), 1), _number(row.get("peak_vram_mb"), 0)]
            for name, row in by_speed(forms)
            if "reason" not in row
        ],
        [f"Weights: {', '.join(f'{side} px {origin}' for side, origin in run['weights'].items())}", *_reasons(forms)],
    )


def _gpu_times(row: Mapping[str, Any]) -> list[str]:
    per_second = row.get("per_second", 1e3 / row["p50_ms"] if row.get("p50_ms") else None)
    times = [_number(row.get(key), 2) for key in ("p50_ms", "p95_ms", "p99_ms")]
    return [*times, _number(per_second, 1), _number(row.get("ready_s"), 2)]


def by_speed(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return engines that run, the fastest first, then those that do not."""
    return sorted(rows.items(), key=lambda item: item[1].get("p50_ms", float("inf")))


def _times(row: Mapping[str, Any]) -> str:
    return "does not run" if "reason" in row else _ratio(row.get("speedup"))


def _reasons(rows: Mapping[str, Any]) -> list[str]:
    """One note for each engine that does not run here."""
    return [f"{name} does not run here: {row['reason']}" for name, row in rows.items() if "reason" in row]


def _accuracy(row: Mapping[str, Any], picture: bool) -> list[str]:
    found = row.get("against_torch")
    if found is None:
        return [""] * (5 if picture else 3)
    parts = [f"{found['max']:.3g}", f"{found['mean']:.3g}"]
    if not picture:
        return [*parts, _number(found["cosine_min"], 6)]
    psnr = "equal" if found["psnr_db"] is None else f"{found['psnr_db']:.1f}"
    return [*parts, psnr, f"{found['lpips']:.2g}", _number(found["identity_cosine_min"], 5)]


def _memory(row: Mapping[str, Any]) -> list[str]:
    return [_number(row.get(key), 0) for key in ("peak_ram_mb", "peak_ram_before_mb", "peak_vram_mb")]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
