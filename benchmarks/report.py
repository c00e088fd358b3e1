"""What do all the measurements say? Markdown tables and one HTML page with plots, out of the records in results/.

python benchmarks/report.py                       tables.md and index.html in out/benchmarks/, of the newest record
python benchmarks/report.py --all                 measures everything first; docs/measured.md says how long
python benchmarks/report.py --page                writes the short table into docs/measured.md as well
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from fid.trainer.evaluate.render import Plots, render
from machine import ROOT
from records import QUICK_RESULTS, RESULTS, last_runs, records
from report_plots import plots
from report_tables import by_speed, tables

SCRIPTS = (  # in the order in which --all runs them
    ("latency",),
    ("roofline",),
    ("scaling",),
    ("peers", "--own-environment"),
    ("quality",),
)
PAGE = ROOT / "docs" / "measured.md"
PAGE_BEFORE = "## Other programs\n"
TABLE_MARK = re.compile(
    r"((?:On .*; ratios are to PyTorch eager:\n\n)?<!-- speed: (benchmarks/results/[\w.-]+\.json) -->\n)(?:\|.*\n)+"
)
NONE = "–"


def short_table(record: Mapping[str, Any]) -> str:
    """Return the table of docs/measured.md, out of one record: reenactment and the whole frame by engine."""
    run = last_runs(record)["latency"]
    lines = ["| engine | reenact | whole frame | identity cosine, PSNR to torch |", "|---|---|---|---|"]
    for engine, row in by_speed(run["graphs"]["reenact batch 1"]):
        if "reason" in row:
            continue
        near, frame = row["against_torch"], run["frame"].get(engine, {})
        psnr = "equal" if near["psnr_db"] is None else f"{near['psnr_db']:.1f} dB"
        reenact = f"{row['p50_ms']:.1f} ms, {row['speedup']:.2f}x"
        whole = f"{frame['p50_ms']:.1f} ms, {frame['speedup']:.2f}x" if "p50_ms" in frame else NONE
        lines.append(f"| {engine} | {reenact} | {whole} | {near['identity_cosine_min']:.4f}, {psnr} |")
    return "\n".join(lines) + "\n"


def write_short_table(record: Path, page: Path = PAGE) -> None:
    """Put the short table of a record, and its machine, in the place of the page's, or before `PAGE_BEFORE`."""
    text, content = page.read_text(), json.loads(record.read_text())
    if last_runs(content).get("latency", {"partial": True}).get("partial"):
        raise click.UsageError(f"{record.name} has no full run of latency.py, which the page's table is made of.")
    table = f"{machine_line(content)}\n\n<!-- speed: benchmarks/results/{record.name} -->\n{short_table(content)}"
    if TABLE_MARK.search(text):
        page.write_text(TABLE_MARK.sub(lambda _: table, text))
    elif PAGE_BEFORE in text:
        page.write_text(text.replace(PAGE_BEFORE, f"{table}\n{PAGE_BEFORE}", 1))
    else:
        raise click.UsageError(f"{page.name} has neither the mark of the table nor the heading before which it goes.")


def machine_line(record: Mapping[str, Any]) -> str:
    """Return the sentence before that table: on what it was measured."""
    machine = record["machine"]
    features = ", ".join(name.upper().replace("_", "-") for name in machine["cpu_features"])
    cpu = f"{machine['cpu']}, {machine['cpus']} CPUs{f' with {features}' if features else ''}"
    return f"On {cpu}, at 256 px, batch 1; ratios are to PyTorch eager:"


def markdown(record: Mapping[str, Any]) -> str:
    """Return all tables in Markdown."""
    intro = "# Benchmarks\n\n" + "".join(f"- {line}\n" for line in setting(record))
    return "\n".join([intro, *(table.markdown() for table in tables(last_runs(record)))])


def page(record: Mapping[str, Any]) -> str:
    """Return one HTML page that needs no other file."""
    runs = last_runs(record)
    return render("fid: benchmarks", setting(record), [Plots(list(plots(runs))), *tables(runs)])


def setting(record: Mapping[str, Any]) -> list[str]:
    """Return the lines about machine, versions and bundle."""
    machine, bundle = record["machine"], record["bundle"]
    device = f"{machine['cpu']}, {machine['cpus']} CPUs, {', '.join(machine['cpu_features'])}"
    loads = ", ".join(f"{run['benchmark']} {run['load_1min']}" for run in record["runs"])
    lines = [
        f"{device}{', ' + machine['gpu'] if machine['gpu'] else ''}; commit {machine['commit']}, {machine['date']}",
        f"bundle {bundle['name']} {bundle['version']}, {bundle['precision']}, {bundle['sha256']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"load of the machine when each began: {loads}",
    ]
    for name, run in last_runs(record).items():
        if "machine" in run:
            apart = {**run["machine"], **run["machine"].get("versions", {})}
            told = ", ".join(f"{key} {value}" for key, value in apart.items() if not isinstance(value, dict))
            lines.append(f"otherwise when {name} ran: {told}")
    if any(run.get("quick") for run in record["runs"]):
        lines.append("A trial with few runs: its figures say nothing.")
    return lines


def measure_all(quick: bool, output: Path) -> None:
    """Run every script, one after the other; stops at the first that fails."""
    for script, *options in SCRIPTS:
        start = time.perf_counter()
        click.echo(f"== {script}", err=True)
        words = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), "-o", str(output)]
        options = [option for option in options if not quick]
        done = subprocess.run([*words, *options, *(["--quick"] if quick else [])])
        if done.returncode:
            raise click.ClickException(f"{script}.py ended with {done.returncode}.")
        click.echo(f"   {time.perf_counter() - start:.0f} s", err=True)


@click.command(help=__doc__)
@click.option("--all", "everything", is_flag=True, help="Measure everything first.")
@click.option("--quick", is_flag=True, help="With --all: few runs, to see that it works; kept apart from the records.")
@click.option("--record", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest one.")
@click.option("--page", "write_page", is_flag=True, help="Write the short table into docs/measured.md.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=QUICK_RESULTS)
def main(everything: bool, quick: bool, record: Path | None, write_page: bool, output: Path) -> None:
    folder = QUICK_RESULTS if quick else RESULTS
    if everything:
        measure_all(quick, folder)
    if record is None:
        found = [path for path, _ in records(folder)]
        if not found:
            raise click.UsageError(f"{folder} holds no record; measure first, with --all.")
        record = found[-1]
    content = json.loads(record.read_text())
    output.mkdir(parents=True, exist_ok=True)
    (output / "tables.md").write_text(markdown(content))
    (output / "index.html").write_text(page(content))
    if write_page:
        write_short_table(record)
    click.echo(f"{output / 'index.html'}, from {record.name}")


if __name__ == "__main__":
    main()
