"""A store between a script and its store, which lets a test step in before a request or answer it with an error."""

import os
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from vbdkit.xenstore.codec import ERROR, Decoder, packet

# Takes an operation and the path that it is for; returns the name of an error, or "" to let the request pass.
Meddling = Callable[[int, bytes], str]


class Meddler:
    """Listens at ``path`` and passes requests on to ``store``, one at a time, as ``meddling`` lets it."""

    def __init__(self, path: Path, store: Path, meddling: Meddling) -> None:
        self._store = store
        self._meddling = meddling
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._stop, self._wake = socket.socketpair()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Meddler":
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._wake.send(b"!")
        for thread in self._threads:
            thread.join()
        for one in (self._listener, self._stop, self._wake):
            one.close()

    def _run(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as both:
            both.register(self._listener, selectors.EVENT_READ)
            both.register(self._stop, selectors.EVENT_READ)
            while self._stop not in [key.fileobj for key, _ in both.select()]:
                self._run(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        """Until the client hangs up."""
        requests, replies = Decoder(), Decoder()
        with client, socket.socket(socket.AF_UNIX) as store:
            store.connect(os.fspath(self._store))
            while data := client.recv(65536):
                for op, number, tx, payload in requests.feed(data):
                    error = self._meddling(op, payload.partition(b"\0")[0])
                    if error:
                        client.sendall(packet(ERROR, number, tx, error.encode() + b"\0"))
                        continue
                    store.sendall(packet(op, number, tx, payload))
                    answered = False
                    while not answered:
                        for reply in replies.feed(store.recv(65536)):
                            client.sendall(packet(*reply))
                            answered = True
