"""What every training loop shares: when to stop, and what one sees meanwhile."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Budget:
    """Time left, and whether Ctrl-C (SIGINT) or SIGTERM asked for a stop; the loop saves and leaves at the next step."""

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

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Progress:
    """A line every few seconds: step, images a second, time left, the last losses."""

    def __init__(self, console: Console, steps: int, batch: int, first: int = 0, every_s: float = 10.0) -> None:
        self.console, self.steps, self.batch, self.first, self.every_s = console, steps, batch, first, every_s
        self.start = self.shown = time.monotonic()

    def show(self, step: int, figures: dict[str, float], force: bool = False) -> None:
        """Prints when it is time to; `step` counts finished steps."""
        now = time.monotonic()
        if not force and now - self.shown < self.every_s:
            return
        self.shown = now
        pace = (now - self.start) / max(step - self.first, 1)
        left = int(pace * (self.steps - step))
        losses = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.console.print(
            f"step {step}/{self.steps}  {self.batch / pace:.1f} img/s  {left // 60}:{left % 60:02d} left  {losses}",
            highlight=False,
        )
