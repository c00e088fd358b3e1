"""How long from nothing to the first composed picture, and how much disk does the runtime take?

Time: a fresh Python process that imports `fid.runtime`, composes one of the shipped faces onto another and ends; wall
seconds from before its start to after its end, with the models already cached. The first process is not counted, it
brings the files into the page cache. Disk: with --install, the growth of the site-packages of a fresh virtual
environment by `pip install` of this checkout without extras (needs the package index).

    python benchmarks/startup.py --install -o OUT.json
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import click
from machine import ROOT, machine_record

FIRST_PICTURE = """
import json, time
begin = time.perf_counter()
from pathlib import Path
import fid.runtime
from fid.runtime import Composer
imported = time.perf_counter()
faces = Path(fid.runtime.__file__).parent / "faces"
identity, attributes = min(faces.glob("identity-*")), min(faces.glob("attributes-*"))
composer = Composer()
opened = time.perf_counter()
composer.set_identity(identity)
composer.compose(attributes)
composed = time.perf_counter()
print(json.dumps({
    "import_s": imported - begin, "open_s": opened - imported, "identity_and_compose_s": composed - opened,
    "provider": composer.provider,
}))
"""


def first_picture() -> dict[str, float | str]:
    """Run one fresh process; its own stages in seconds, its provider, and `wall_s` around it."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", FIRST_PICTURE], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | {"wall_s": time.perf_counter() - start}


def sizes_mb(folder: Path) -> dict[str, float]:
    """Return MB (10^6 bytes) on disk of every entry of `folder`."""
    sizes = {}
    for entry in folder.iterdir():
        files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
        sizes[entry.name] = sum(512 * path.stat().st_blocks for path in files) / 1e6
    return sizes


def install_mb(checkout: Path = ROOT) -> dict[str, Any]:
    """Return what a plain install of a checkout adds to a fresh virtual environment: in all, and the largest parts."""
    with tempfile.TemporaryDirectory() as name:
        venv.create(name, with_pip=True)
        python = Path(name) / "bin" / "python"
        (packages,) = Path(name).glob("lib/python*/site-packages")
        before = sizes_mb(packages)
        source = Path(name) / "source"  # a copy: the build neither finds nor leaves anything in the checkout
        shutil.copytree(
            checkout, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "runs")
        )
        subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True, stdout=sys.stderr)
        after = sizes_mb(packages)
    added = {name: size - before.get(name, 0.0) for name, size in after.items()}
    largest = sorted(added.items(), key=lambda item: -item[1])[:8]
    return {"total": round(sum(added.values()), 1), "largest": {name: round(size, 1) for name, size in largest}}


@click.command(help=__doc__)
@click.option("--processes", type=click.IntRange(min=1), default=5, show_default=True, help="Counted processes.")
@click.option("--install", is_flag=True, help="Measure the size of a plain install too.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="OUT.json.")
def main(processes: int, install: bool, output: Path | None) -> None:
    machine = machine_record()
    first_picture()
    runs = [first_picture() for _ in range(processes)]
    stages = ("wall_s", "import_s", "open_s", "identity_and_compose_s")
    record: dict[str, object] = {
        "benchmark": "startup",
        "processes": processes,
        "first_picture": {
            stage: {
                "median": round(statistics.median(float(run[stage]) for run in runs), 3),
                "max": round(max(float(run[stage]) for run in runs), 3),
            }
            for stage in stages
        },
        "provider": runs[0]["provider"],
        "machine": machine,
    }
    if install:
        record["install_mb"] = install_mb()
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
