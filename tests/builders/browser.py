"""Headless Chromium, driven over its own DevTools pipe: no driver program, no port, no library.

https://chromedevtools.github.io/devtools-protocol: JSON messages, each ended by a zero byte, on the browser's
file descriptors 3 (to it) and 4 (from it).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root in a container cannot set up
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Puts the two pipes where the browser expects them, and becomes the browser.
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def find_browser() -> str | None:
    """The first Chromium on the path."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium, as a context manager.

    Attributes:
        console: what the page, or the browser about it, wrote to the console.
        requests: the address of everything that was asked for since the last `open`.
        blocked: those of them that the page's own policy kept from being sent.

    """

    def __init__(self, program: str, wait: float = 60.0) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self.blocked: list[str] = []
        self._addresses: dict[str, str] = {}

        self._wait, self._number, self._rest = wait, 0, b""
        self._session: str | None = None
        self._home = tempfile.mkdtemp(prefix="diva-rs-browser-")
        ends = [
            fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pipe in (os.pipe(), os.pipe()) for end in _closing(pipe)
        ]
        theirs_in, self._out, self._in, theirs_out = ends
        start = (sys.executable, "-c", _START, str(theirs_in), str(theirs_out))
        self._process = subprocess.Popen(
            [*start, program, *_FLAGS, f"--user-data-dir={self._home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)

    def __enter__(self) -> "Browser":
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._out)
        os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)  # the group that was started here: its own session
        self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False, media: str = "") -> None:
        """Load a file at a width in CSS pixels, in the light or the dark scheme, on screen or for print."""
        self.requests.clear()
        self.blocked.clear()

        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + self._wait
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            assert time.monotonic() < deadline, f"{file} did not load"
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """A PNG of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it is printed on A4."""
        answer = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def _next(self) -> dict[str, Any]:
        """The next message; an event is noted on the way."""
        deadline = time.monotonic() + self._wait
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError("the browser ended" if ready else f"no answer in {self._wait:.0f} s")
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        event: dict[str, Any] = json.loads(message)
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
                self._addresses[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed" if params.get("blockedReason") == "csp":
                self.blocked.append(self._addresses[params["requestId"]])

            case "Log.entryAdded":
                self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
            case "Runtime.consoleAPICalled":
                self.console.append(f"{params['type']}: {params['args']}")
            case "Runtime.exceptionThrown":
                self.console.append(f"exception: {params['exceptionDetails']['text']}")
        return event


def _closing(pipe: tuple[int, int]) -> Any:
    """The two ends, each closed after it was copied."""
    for end in pipe:
        yield end
        os.close(end)
