"""A real Firefox without a window, driven by WebDriver BiDi, which it speaks itself: no driver program is needed."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import FIREFOX
from websockets.sync.client import ClientConnection, connect

PREFERENCES = ("media.navigator.streams.fake", "media.navigator.permission.disabled")  # a camera that shows a pattern


class Firefox:
    """One page of one session."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.asked: list[str] = []  # the address of every request
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["network.beforeRequestSent"])

    @property
    def _page(self) -> str:
        """The page's name, another one after its isolation changed."""
        return self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send one command, and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=120))
            if said.get("method") == "network.beforeRequestSent":
                self.asked.append(said["params"]["request"]["url"])
            if said.get("id") == self._number:
                assert said["type"] == "success", said
                return said["result"]

    def open(self, address: str, width: int, height: int) -> None:
        """Open a page in a window of that size, px."""
        self.ask("browsingContext.setViewport", context=self._page, viewport={"width": width, "height": height})
        self.ask("browsingContext.navigate", context=self._page, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Return the value (text, number, truth) of a JavaScript expression."""
        target = {"context": self._page}
        found = self.ask("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert found["type"] == "success", found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 90) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        guarded = (
            f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"  # it may be loading
        )
        while not self.evaluate(guarded):
            assert time.monotonic() < end, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.2)

    def shoot(self, path: Path) -> None:
        """Write what is seen as a PNG picture."""
        path.write_bytes(base64.b64decode(self.ask("browsingContext.captureScreenshot", context=self._page)["data"]))


@contextmanager
def firefox(profile: Path) -> Iterator[Firefox]:
    """Start Firefox with an empty profile folder, and end it."""
    assert FIREFOX is not None
    profile.mkdir()
    (profile / "user.js").write_text("".join(f'user_pref("{name}", true);\n' for name in PREFERENCES))
    command = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"ws://\S+", line)))
        with connect(f"{address}/session", max_size=None) as socket:
            yield Firefox(socket)
    finally:
        process.terminate()
        process.communicate(timeout=60)
