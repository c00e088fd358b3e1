"""Where measurements are kept: one JSON file for each machine and commit, to which runs are only ever added.

A file is `{"machine": ..., "bundle": ..., "runs": [...]}`; a run has `benchmark`, `settings`, the load of the machine
when it began, and its figures; `machine` where something differs from the file's (a version, the clock), and `partial`
where only some of the graphs or engines were asked for. `report.py` takes the last run of each benchmark.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fid.runtime.files import new_file
from fid.runtime.weights.bundle import Bundle
from machine import ROOT, machine_record

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "out" / "benchmarks"
"""Runs of `--quick` are for trying things out; git ignores this folder."""

Record = dict[str, Any]


def add_run(folder: Path, run: Record, machine: Record | None = None) -> Path:
    """Add a run to the file of this machine and commit; returns the file. What is in it stays as it is."""
    machine = machine or machine_record()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name_of(machine)}.json"
    write_json(path, with_run(path, run, machine))
    return path


def with_run(path: Path, run: Record, machine: Record) -> Record:
    """Return the contents of a file, or of a new one, with a run at its end. Raises KeyError for a file of another
    form."""
    own = {"date": machine["date"], "load_1min": machine["load_1min"]}
    if not path.exists():
        return {"machine": machine, "bundle": bundle_record(), "runs": [{**run, **own}]}
    record = json.loads(path.read_text())
    if record["bundle"] != bundle_record():
        own["bundle"] = bundle_record()
    apart = _apart({**machine, **own}, {**record["machine"], **own})  # date and load every run has
    if apart:
        own["machine"] = apart
    return {**record, "runs": [*record["runs"], {**run, **own}]}


def _apart(new: Record, old: Record) -> Record:
    """What of a record is not as in another, None for what it lacks."""
    differs = [key for key in {**old, **new} if new.get(key) != old.get(key)]
    both = {key: (new.get(key), old.get(key)) for key in differs}
    return {k: _apart(a, b) if isinstance(a, dict) and isinstance(b, dict) else a for k, (a, b) in both.items()}


def write_json(path: Path, record: Record) -> None:
    """Write aside, then move to its place, so that a reader never meets half a file."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")


def name_of(machine: Record) -> str:
    """Return the file name for a machine and commit: `amd-epyc-2cpu-1a2b3c4d5e6f`, with `-changes` when files differ
    from it."""
    device = machine.get("gpu") or f"{machine['cpu']} {machine['cpus']}cpu"
    words = f"{str(device).split(',')[0]} {machine['commit'] or 'no-commit'}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def bundle_record() -> Record:
    """Return name, version and hash of the bundle that ships, so that figures of two bundles are never mixed up."""
    bundle = Bundle.load()
    digest = hashlib.sha256((bundle.folder / "bundle.json").read_bytes()).hexdigest()
    return {"name": bundle.name, "version": bundle.version, "precision": bundle.precision, "sha256": digest[:16]}


def records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Yield every file of this form in a folder, the oldest first by the date of its last run; others are
    passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and {"machine", "runs"} <= record.keys() and record["runs"]:
            found.append((record["runs"][-1]["date"], path.stat().st_mtime, path, record))
    for _, _, path, record in sorted(found, key=lambda item: item[:3]):
        yield path, record


def last_runs(record: Record) -> dict[str, Record]:
    """Return the last run of each benchmark in a file, by its name; a partial one only where there is no other."""
    partial_first = sorted(record["runs"], key=lambda run: not run.get("partial", False))
    return {run["benchmark"]: run for run in partial_first}
