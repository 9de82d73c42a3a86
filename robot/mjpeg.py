"""A network camera: MJPEG over HTTP on 127.0.0.1, newest frame only, as many real IP cameras speak it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2

from robot.types import Image

LONGEST_BODY = 65536  # bytes that somebody may post
SEND_BUFFER = 65536  # bytes; small, so that a slow reader misses frames instead of getting old ones


def encoded(image: Image, quality: int) -> bytes:
    """An RGB image (H, W, 3) uint8 as a JPEG."""
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


class FrameFeed:
    """The newest JPEG for any number of viewers; older ones are never sent."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jpeg = b""
        self._sequence = 0
        self._viewers = 0
        self._closed = self._hidden = False

    @property
    def watched(self) -> bool:
        """True while somebody looks: nothing is rendered for nobody."""
        return self._viewers > 0

    def publish(self, image: Image, quality: int) -> None:
        """Shows an RGB image to all viewers."""
        self.send(encoded(image, quality))

    def send(self, jpeg: bytes) -> None:
        """Shows a picture that is a JPEG already, or what somebody takes for one."""
        with self._changed:
            self._jpeg, self._sequence = jpeg, self._sequence + 1
            self._changed.notify_all()

    @property
    def hidden(self) -> bool:
        """True while nobody is let in."""
        return self._hidden

    def hide(self, hidden: bool) -> None:
        """Ends all viewers' streams and lets nobody in, or lets them in again."""
        with self._changed:
            self._hidden = hidden
            self._changed.notify_all()

    def frames(self) -> Iterator[bytes]:
        """Each time the newest JPEG that this viewer has not seen, until the feed is closed or hidden."""
        seen = self._sequence
        with self._watching():
            while (newer := self._wait_newer(seen)) is not None:
                seen, jpeg = newer
                yield jpeg

    def close(self) -> None:
        """Ends all viewers' streams."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_newer(self, seen: int) -> tuple[int, bytes] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._hidden or self._sequence > seen)
            return None if self._closed or self._hidden else (self._sequence, self._jpeg)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with self._changed:
            self._viewers += 1
        try:
            yield
        finally:
            with self._changed:
                self._viewers -= 1


PAGE = b"""<!doctype html><title>emulated D'Claw</title><img src="/cam.mjpg" width="512">
<p><a href="/state">servos, valve and faults</a></p>"""


class CameraServer(ThreadingHTTPServer):
    """A camera on 127.0.0.1: `/cam.mjpg` streams, `/state` tells the truth as JSON, `/` shows both.

    What is posted to `/faults` goes to `inject`, and to `/hands` to `hold`, which answer with what they
    understood, or raise ValueError; a DELETE of `/faults` is `heal`.
    """

    daemon_threads = True
    block_on_close = False  # a viewer's thread ends when its feed does

    def __init__(
        self,
        feed: FrameFeed,
        state: Callable[[], Mapping[str, Any]],
        port: int = 0,
        inject: Callable[[bytes], Mapping[str, Any]] | None = None,
        heal: Callable[[], None] | None = None,
        hold: Callable[[bytes], Mapping[str, Any]] | None = None,
        page: bytes = PAGE,
    ) -> None:
        super().__init__(("127.0.0.1", port), _CameraHandler)
        self.feed = feed
        self.state = state
        self.heal, self.page = heal, page
        self.posts = {"/faults": inject, "/hands": hold}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address of the page; append `/cam.mjpg` for the stream."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Ends all streams and frees the port."""
        self.feed.close()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that left in the middle of a frame is no error."""


class _CameraHandler(BaseHTTPRequestHandler):
    server: CameraServer
    timeout = 5.0  # s that a viewer may stall before its connection is dropped

    def do_GET(self) -> None:
        """Answers the three paths that can be read."""
        if self.path == "/cam.mjpg":
            self._stream()
        elif self.path == "/state":
            self._send("application/json", json.dumps(self.server.state()).encode())
        elif self.path == "/":
            self._send("text/html", self.server.page)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Takes a fault or a pose: 200 with what was understood, or 400 with what is wrong with it."""
        take = self.server.posts.get(self.path)
        if take is None:
            self.send_error(404)
            return
        try:
            told = take(self._body())
        except ValueError as error:
            self._send("text/plain; charset=utf-8", f"{error}\n".encode(), 400)
        else:
            self._send("application/json", json.dumps(told).encode())

    def do_DELETE(self) -> None:
        """Ends all faults."""
        if self.path != "/faults" or self.server.heal is None:
            self.send_error(404)
            return
        self.server.heal()
        self._send("application/json", b"{}")

    def _body(self) -> bytes:
        """Raises ValueError when it says no length, or one that no fault has."""
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and int(length) <= LONGEST_BODY):
            raise ValueError(f"Content-Length is {length or 'missing'}, expected at most {LONGEST_BODY}")
        return self.rfile.read(int(length))

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal for the user."""

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        if self.server.feed.hidden:
            self.send_error(503)
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for jpeg in self.server.feed.frames():
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
