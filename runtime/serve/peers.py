"""Several processes that answer on one port: what one of them asks another.

The system gives each connection to any of them. A live video belongs to the process that answered its offer, whose name
its session carries; who is asked to end somebody else's passes that on. `/metrics` of any of them tells of all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_S = 5.0  # seconds that another process has for an answer
MAX_LINE = 200  # bytes of a question


@dataclass
class Peers:
    """This process among those of one server. They listen on sockets in a folder for this user alone."""

    number: int
    count: int
    folder: Path
    _server: asyncio.Server | None = field(default=None, repr=False)

    def own(self, session: str) -> str:
        """Return the name under which all of them know a live session of this one."""
        return f"{self.number}.{session}"

    def owner(self, session: str) -> int:
        """Return whose a session is; this one's for a name that tells nothing."""
        number = session.partition(".")[0]
        return int(number) if number.isdecimal() and int(number) < self.count else self.number

    async def listen(self, answer: Callable[[str], Coroutine[Any, Any, bytes]]) -> None:
        """Answer what the others ask, from now on."""

        async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, ValueError, TimeoutError):
                line = await asyncio.wait_for(reader.readline(), ANSWER_S)
                writer.write(await answer(line[:MAX_LINE].decode().strip()))
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_unix_server(asked, str(self._socket(self.number)))

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._socket(self.number).unlink(missing_ok=True)

    async def ask(self, number: int, question: str) -> bytes | None:
        """Return what another one answers; None when it does not, because it is being started again for instance."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket(number)))
                writer.write(f"{question}\n".encode())
                answer = await reader.read()
                writer.close()
                return answer
        except (OSError, TimeoutError):
            return None

    def _socket(self, number: int) -> Path:
        return self.folder / f"{number}.sock"


def merged(texts: Sequence[tuple[str, bytes]], label: str = "worker") -> bytes:
    """Return metrics of several processes in Prometheus' text form as one, each sample with a label that tells whose it
    is. `texts`: name and text of each."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    for name, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, label: name}, sample.value)

    class Known:
        def collect(self) -> list[Metric]:
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(Known())  # type: ignore[arg-type] - it asks for no more of a collector
    return generate_latest(registry)
