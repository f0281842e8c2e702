"""Serves the page of a sweep or a run while it goes, to this machine alone: GET / and GET /data, nothing else."""

import errno
import threading
import time
from collections import deque
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.scripts.analysis.read_runs import Kept
from hesscale_rl.scripts.reporting.content import Asked, content
from hesscale_rl.scripts.reporting.figures import Json
from hesscale_rl.scripts.reporting.page import as_json, page, policy, scripts
from hesscale_rl.system.console import complaints, say

HOST = "127.0.0.1"
FRESH = 3.0  # seconds for which an answer is given again: several windows cost no more than one
WINDOW = 60.0  # seconds over which steps per second are taken
LARGEST_PORT = 65535


class Watch:
    """What the page says now; it reads anew only the files that have changed."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self._kept: Kept = {}
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()
        self._data: Json = {}
        self._until = 0.0

    def data(self) -> Json:
        """Return the page's data, not older than FRESH; with a note in place of runs where there are none yet."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    with complaints():
                        self._data = content(self.asked, self._kept)
                except InputError as error:
                    self._data = nothing(self.asked, str(error))
                self._data["progress"] |= self._pace(self._data["progress"])
                self._until = time.monotonic() + FRESH
            return self._data

    def _pace(self, progress: Json) -> Json:
        """Steps per second and the seconds that are left, {} where nothing has moved."""
        now = time.monotonic()
        self._seen.append((now, progress["at"]))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        (then, before), at = self._seen[0], progress["at"]
        if at <= before:
            return {}
        speed = (at - before) / (now - then)
        return {"speed": speed, "left": max(0, progress["of"] - at) / speed}


def nothing(asked: Asked, reason: str) -> Json:
    """Return the data of a page on which there is nothing yet."""
    title, made = ", ".join(asked.runs[:3]), time.strftime("%Y-%m-%d %H:%M:%S")
    empty: Json = {"title": title, "folders": [], "made": made, "counts": {}, "progress": {"at": 0, "of": 0}}
    return empty | {"agents": [], "runs": [], "common": {}, "notes": [reason]}


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `server.watch` has what there is to say."""

    server_version, sys_version = "hesscale-rl", ""
    server: Any

    def do_GET(self) -> None:
        """Give the page, or its data."""
        # A page of another site that has this machine's address by a name of its own is not to read what runs here.
        if self.headers.get("Host", "") not in self.server.names:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", f"this is http://{self.server.names[0]}")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, "text/html", page(self.server.watch.data(), live=True))
        elif self.path == "/data":
            self._answer(HTTPStatus.OK, "application/json", as_json(self.server.watch.data()))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /data")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        headers |= {"Content-Security-Policy": policy(True), "Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for every look at the page is no help."""


class ReportServer(ThreadingHTTPServer):
    """Listens on this machine alone."""

    daemon_threads = True

    def __init__(self, port: int, watch: Watch):
        if not 0 <= port <= LARGEST_PORT:
            raise InputError(f"--port {port}: must be between 0 and {LARGEST_PORT}")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            taken = (
                "is taken, name another" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            )
            raise InputError(f"--port {port}: {taken}, or 0 for any that is free") from None
        self.watch = watch
        self.names = [f"{host}:{self.server_port}" for host in (HOST, "localhost")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a window that was closed while it was answered."""


def serve(asked: Asked, port: int) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    for name in asked.runs:
        if not Path(name).is_dir():
            raise InputError(f"{name}: no such directory")
    with ReportServer(port, Watch(asked)) as server:
        scripts()  # whether there is what draws the page, before anybody looks at it
        say(f"http://{server.names[0]}  (Ctrl-C ends it)")
        server.serve_forever(poll_interval=0.2)
    return DONE
