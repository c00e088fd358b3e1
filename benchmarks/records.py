"""Where measurements are kept: one JSON file for each machine and commit, to which runs are only ever added.

A file is `{"machine": ..., "bundle": ..., "runs": [...]}`; a run has `benchmark`, `settings`, the load of the machine
when it began, and its figures. `report.py` takes the last run of each benchmark.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fid.runtime.bundle import Bundle
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
    record: Record = {"machine": machine, "bundle": bundle_record(), "runs": []}
    if path.exists():
        record = json.loads(path.read_text())
        if record["bundle"] != bundle_record():
            run = {**run, "bundle": bundle_record()}
    record["runs"].append({**run, "date": machine["date"], "load_1min": machine["load_1min"]})
    write_json(path, record)
    return path


def write_json(path: Path, record: Record) -> None:
    """Write aside, then move to its place, so that a reader never meets half a file."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".json.part")
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    Path(name).chmod(0o644)
    Path(name).replace(path)


def name_of(machine: Record) -> str:
    """File name for a machine and commit: `amd-epyc-2cpu-1a2b3c4d5e6f`, with `-changes` when files differ from it."""
    device = machine.get("gpu") or f"{machine['cpu']} {machine['cpus']}cpu"
    words = f"{str(device).split(',')[0]} {machine['commit'] or 'no-commit'}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def bundle_record() -> Record:
    """Name, version and hash of the bundle that ships, so that figures of two bundles are never mixed up."""
    bundle = Bundle.load()
    digest = hashlib.sha256((bundle.folder / "bundle.json").read_bytes()).hexdigest()
    return {"name": bundle.name, "version": bundle.version, "precision": bundle.precision, "sha256": digest[:16]}


def records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Every file of this form in a folder, the oldest first by the date of its last run; others are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and {"machine", "runs"} <= record.keys() and record["runs"]:
            found.append((record["runs"][-1]["date"], path.stat().st_mtime, path, record))
    for _, _, path, record in sorted(found, key=lambda item: item[:3]):
        yield path, record


def last_runs(record: Record) -> dict[str, Record]:
    """The last run of each benchmark in a file, by its name."""
    return {run["benchmark"]: run for run in record["runs"]}
