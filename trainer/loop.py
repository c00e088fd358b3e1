"""What every training loop shares: where it runs, when to stop, and what one sees meanwhile."""

import ctypes
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..runtime.errors import FidError

T = TypeVar("T")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
ROOT = Path(__file__).resolve().parents[1]  # of the repository, where this is a checkout
SAVE_EVERY_S = 240  # between two checkpoints of a run


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kept_on(device: torch.device, size: int) -> torch.device:
    """Return where to keep `size` bytes that every step takes a part of: a GPU with three times as many free, else the
    CPU."""
    if device.type == "cuda" and 3 * size < torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def tune_machine() -> None:
    """Apply settings of the process that make the networks faster and change nothing but their rounding.

    GPU: products in TF32 (10 bits), as convolutions are anyway, and for each of these the fastest kernel, by trying.
    CPU: glibc keeps what is freed instead of handing it back to the system, page by page, after every layer. The maps
    of the generator are large enough that each would be mapped anew and its pages filled with zeros: a step takes up to
    1.7 times as long that way. The memory goes back when the process ends.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 256 << 20)


def move_average(averages: Iterable[Tensor], values: Iterable[Tensor], decay: float) -> None:
    """Update exponential moving averages in place: each becomes decay * average + (1 - decay) * value."""
    get_ema_multi_avg_fn(decay)([*averages], [*values], 0)


def machine_record() -> dict[str, Any]:
    """Return where and with what a run is made, for its run.json: platform, CPU count, device, versions, commit."""
    device = best_device()
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """Return the commit of this source tree, 40 digits, with `+changes` when tracked files differ from it.

    None outside of a checkout of fid: an installed one may lie inside of somebody else's repository.
    """
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class Budget:
    """Time left, and whether Ctrl-C (SIGINT) or SIGTERM asked for a stop.

    The loop asks `over` at each step; when it is true, it saves and leaves.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.start = time.monotonic()
        self.limit = None if max_minutes is None else 60 * max_minutes
        self.interrupted = False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def over(self) -> bool:
        """True when the loop has to save and stop."""
        return self.interrupted or (self.limit is not None and self.seconds >= self.limit)

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Within it, the first Ctrl-C asks for a stop; the second one is Python's usual KeyboardInterrupt."""

        def ask(number: int, _: object) -> None:
            self.interrupted = True
            signal.signal(number, previous[number])

        previous = {int(number): signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class StoppedError(FidError):
    """The budget was over before the first step."""


class Preparing:
    """Go through what comes before the first step, part by part: say how far it is, and end where the budget is over.

    for part in preparing("drawing faces", parts): ...
    """

    def __init__(
        self,
        say: Callable[[str], object] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
        every_s: float = 10.0,
    ) -> None:
        """`say` gets a line every `every_s` seconds; `stop` is asked before each part."""
        self.say, self.stop, self.every_s = say, stop, every_s

    def __call__(self, what: str, parts: Sequence[T]) -> Iterator[T]:
        """Yield the parts. Raises `StoppedError` when it is time to stop."""
        start = shown = time.monotonic()
        for done, part in enumerate(parts):
            if self.stop():
                raise StoppedError(f"stopped while {what}, after {done} of {len(parts)}.")
            now = time.monotonic()
            if done and now - shown >= self.every_s:
                shown, left = now, int((now - start) / done * (len(parts) - done))
                self.say(f"{what}: {done} of {len(parts)}, {left // 60}:{left % 60:02d} left")
            yield part


class Watch:
    """What TensorBoard shows of a run: scalars at every step and pictures. Without a folder, or without the
    `tensorboard` package, it does nothing.
    """

    def __init__(self, run: Path | None) -> None:
        self.writer = None
        if run is not None and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer:
            self.writer.close()

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Show losses and rates of a step."""
        if self.writer:
            for name, value in figures.items():
                self.writer.add_scalar(name.replace(" ", "_"), value, step)

    def picture(self, step: int, image: np.ndarray) -> None:
        """Show a picture, RGB uint8 [H, W, 3]."""
        if self.writer:
            self.writer.add_image("grid", image, step, dataformats="HWC")


class Progress:
    """A line every few seconds: step, images a second, time left, the last losses."""

    def __init__(self, console: Console, steps: int, batch: int, first: int = 0, every_s: float = 10.0) -> None:
        self.console, self.steps, self.batch, self.first, self.every_s = console, steps, batch, first, every_s
        self.start = self.shown = time.monotonic()

    def show(self, step: int, figures: dict[str, float], force: bool = False) -> None:
        """Print when it is time to; `step` counts finished steps."""
        now = time.monotonic()
        if not force and now - self.shown < self.every_s:
            return
        self.shown = now
        pace = (now - self.start) / max(step - self.first, 1)
        left = int(pace * (self.steps - step))
        losses = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.console.print(
            f"step {step}/{self.steps}  {self.batch / pace:.1f} img/s  {left // 60}:{left % 60:02d} left  {losses}"
        )
