"""A small TCP proxy on 127.0.0.1 that can break: cut its connections, or go silent without closing them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

_CHUNK_BYTES = 1 << 16


class Proxy:
    """Forwards 127.0.0.1:``port`` to another port there.

    Attributes:
        port: Where it listens.
        accepted: How many connections it took.
        forwarded: How many bytes it passed to its clients.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self.forwarded = 0
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> int:
        """Close every connection that is open; returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(pair)
        return len(pairs)

    def stall(self) -> None:
        """Stop forwarding, and accept nobody, without closing anything."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward again."""
        self._flowing.set()

    def close(self) -> None:
        """End."""
        self._closed = True
        self._flowing.set()
        self._listener.close()
        self.cut()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                if not select.select([self._listener], [], [], 0.05)[0]:
                    continue
                self._flowing.wait()
                client = self._listener.accept()[0]
            except (OSError, ValueError):
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.append((client, server))
            self.accepted += 1
        if self._closed:
            self.cut()
            return
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, to_client: bool) -> None:  # noqa: FBT001 - a direction
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flowing.wait()
                sink.sendall(data)
                self.forwarded += len(data) if to_client else 0
        _close((source, sink))


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextlib.contextmanager
def proxy_to(target_port: int) -> Iterator[Proxy]:
    """A proxy for the length of a block."""
    proxy = Proxy(target_port)
    try:
        yield proxy
    finally:
        proxy.close()
