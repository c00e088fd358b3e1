"""The table of `against.py`: every figure with its bar, as lines of text."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

SIDES = ("old", "new")
FLOAT32 = ("onnxruntime", "openvino")
BF16, INT8 = "openvino-bf16", "openvino-int8"
Record = dict[str, Any]


def table(parts: Mapping[str, Record]) -> Iterator[str]:
    """Yield the lines: what, old, new, how many times quicker or which share of it, by wall and by processor time, and
    the bar."""
    rows = {name: row for name, row in parts.items() if "missing" not in row}
    yield f"{'':54}{'old':>9}{'new':>9}{'ratio':>8}{'cpu':>8}   bar"
    for graph in ("reenact", "synthesis-light"):
        yield from _graph(rows, graph, "bfloat16, best engine of each side", [BF16], ">= 1.8", everything=True)
        yield from _graph(rows, graph, "eight bits beside bfloat16", [INT8], "")
        for engine in FLOAT32:
            yield from _graph(rows, graph, f"float32, {engine}", [engine], ">= 1.3")
        yield from _graph(rows, graph, "float32, best engine of each side", FLOAT32, ">= 1.3")
    yield from _live(rows, "frames a second, bfloat16", [BF16], "fps", max, ">= 1.7", upward=True)
    yield from _live(rows, "frames a second, float32", FLOAT32, "fps", max, ">= 1.35", upward=True)
    yield from _live(rows, "frames a second, eight bits beside bfloat16", [INT8], "fps", max, "", upward=True)
    for engine in (INT8, BF16, *FLOAT32):
        yield from _live(
            rows, f"frames a second, {engine}, as it is now", [f"default {engine}"], "fps", max, "", upward=True
        )
        yield from _live(rows, f"processor ms a frame, {engine}", [engine], "cpu_ms_a_frame", min, "")
        yield from _live(rows, f"frame age p99, ms, {engine}", [engine], "age_p99_ms", min, "<= 1", share=True)
        yield from _live(rows, f"resident, MB, {engine}", [engine], "resident_mb", min, "<= 0.65", share=True)
        yield from _live(rows, f"first frame, s, {engine}", [engine], "first_frame_s", min, "<= 0.8", share=True)
    for name, bar in (
        ("reenact beside torch-compile", ">= 2.2"),
        ("reenact beside torch", ">= 4"),
        ("1024 px beside random-face", ">= 2.5"),
    ):
        if name in rows:
            yield _line(f"{name}, ms", rows[name]["wall_ms"], rows[name]["wall_ratio"], rows[name]["cpu_ratio"], bar)
    yield from _graph(rows, "synthesis-1024", "best engine of each side", [*FLOAT32, BF16], "")
    if "install" in rows:
        sizes = rows["install"]["mb"]
        yield _line("lean install, MB", sizes, sizes["new"] / sizes["old"], None, "<= 330 MB")
    for name, row in parts.items():
        if "missing" in row:
            yield f"{name}: {row['missing']}"


def _line(name: str, values: Mapping[str, float], wall: float | None, cpu: float | None, bar: str) -> str:
    shown = [f"{wall:.2f}" if wall else "-", f"{cpu:.2f}" if cpu else "-"]
    return f"{name:54}{values['old']:9.1f}{values['new']:9.1f}{shown[0]:>8}{shown[1]:>8}   {bar}".rstrip()


def _graph(
    rows: Mapping[str, Record], graph: str, what: str, engines: object, bar: str, everything: bool = False
) -> Iterator[str]:
    """A graph on some engines: the least of each side; `everything`: the old side may take any."""
    assert isinstance(engines, (list, tuple))
    new = [rows[f"{graph} {engine}"] for engine in engines if f"{graph} {engine}" in rows]
    any_engine = [rows[f"{graph} {engine}"] for engine in (*FLOAT32, BF16) if f"{graph} {engine}" in rows]
    if not new:
        return
    if len(new) == 1 and not everything:
        yield _line(f"{graph}, ms, {what}", new[0]["wall_ms"], new[0]["wall_ratio"], new[0]["cpu_ratio"], bar)
        return
    old = any_engine if everything else new
    best = {
        clock: {"old": min(row[clock]["old"] for row in old), "new": min(row[clock]["new"] for row in new)}
        for clock in ("wall_ms", "cpu_ms")
    }
    wall, cpu = (own["old"] / own["new"] for own in best.values())
    yield _line(f"{graph}, ms, {what}", best["wall_ms"], wall, cpu, bar)


def _live(
    rows: Mapping[str, Record],
    what: str,
    engines: object,
    kind: str,
    best: Callable[..., float],
    bar: str,
    upward: bool = False,
    share: bool = False,
) -> Iterator[str]:
    """A figure of the live command on the best of some engines; the ratio says how many times better the new side is,
    or with `share` which part of the old side's it needs."""
    assert isinstance(engines, (list, tuple))
    names = [f"default live {name[8:]}" if name.startswith("default ") else f"live {name}" for name in engines]
    own = [rows[name][kind] for name in names if name in rows]
    if own:
        values = {side: best(row[side] for row in own) for side in SIDES}
        gain = values["new"] / values["old"] if upward or share else values["old"] / values["new"]
        yield _line(f"live, {what}", values, gain, None, bar)
