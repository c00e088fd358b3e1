"""What does one get in front of a camera: how many frames a second, how old, how soon the first, in how much memory?

    python benchmarks/live.py --clip talking.mp4 --seconds 20

`fid-run webcam --headless` runs as a user would start it, with the clip in the place of a camera, in a fresh process
for each engine, after a run that does not count and leaves OpenVINO's builds cached. Beside it: what the networks of a
live frame take in PyTorch, eager, without any of the camera's work.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from engines import CPU_ENGINES, as_w_plus, inputs, open_engine
from fid.runtime.engines.machine import physical_cores
from fid.runtime.media.video import open_clip
from machine import ROOT, machine_record

FACE = ROOT / "runtime" / "faces" / "identity-ada.jpg"
MEASURED = ("fps", "frame_age_ms", "first_frame_s", "resident_mb", "stage_ms", "dropped", "provider")
RUNS = 20  # of PyTorch, after three that do not count


def webcam(engine: str, clip: Path, seconds: float) -> dict[str, Any]:
    """Return what `fid-run webcam` reports of one run; or the reason why there is none."""
    command = ["webcam", "--identity", FACE, "--camera", clip, "--headless", "--json", "--duration", seconds]
    command += ["--engine", engine, "--require", engine]
    start = "from fid.runtime.commands.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", start, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"reason": last.removeprefix("fid-run: ")}
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: report[name] for name in MEASURED}


def eager_ms(threads: int) -> float:
    """Return the median ms of PyTorch for what the live path computes of a frame: attributes, mapper, light
    generator."""
    graphs = {name: open_engine("torch", name, threads) for name in ("attributes", "mapper", "synthesis-light")}
    arrays = dict(inputs("reenact", 1))

    def once() -> None:
        code = graphs["attributes"].run({"crop": arrays["crop"]})
        w = graphs["mapper"].run(
            {**{k: v for k, v in arrays.items() if k not in ("crop", "w_plus_offset")}, "attributes": code}
        )
        graphs["synthesis-light"].run({"w_plus": as_w_plus(w, "synthesis-light")})

    times = []
    for _ in range(RUNS + 3):
        begin = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - begin))
    return round(float(np.median(times[3:])), 2)


@click.command(help=__doc__)
@click.option("--clip", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, show_default=True, help="For each engine.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(clip: Path, seconds: float, output: Path | None) -> None:
    machine, film = machine_record(), open_clip(clip)
    camera = {"width": film.width, "height": film.height, "fps": round(film.fps, 2)}
    figures = {}
    for engine in CPU_ENGINES:
        webcam(engine, clip, 3)  # builds what is cached
        figures[engine] = webcam(engine, clip, seconds)
        click.echo(f"{engine}: {figures[engine].get('fps', figures[engine].get('reason'))}", err=True)
    result = {"benchmark": "live", "seconds": seconds, "camera": camera, "engines": figures}
    result |= {"torch_eager_ms": eager_ms(physical_cores()), "machine": machine}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
