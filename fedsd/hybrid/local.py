"""The IES in one process, under uvicorn."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 takes a free one. certificate, key: PEM files for TLS, both or neither."""

    host: str = "127.0.0.1"
    port: int = 8600
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for half of a TLS pair, or one that does not exist."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both a certificate and its key; give --certificate and --key, or neither")
        for file in (self.certificate, self.key):
            if file is not None and not file.is_file():
                raise ValueError(f"{file} does not exist; make a certificate with docker/certs.sh, or name another")

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can ask."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def url(self, port: int) -> str:
        """Return the address as devices write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"


def serve_local(app: FastAPI, address: Address, listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `listening` is told the URL once the port is ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            raise ValueError(
                f"{address.host}:{address.port} cannot be listened on ({error.strerror}); choose another --port"
            ) from None
        listener.listen(1024)
        listening(address.url(listener.getsockname()[1]))
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=5,
            ssl_certfile=address.certificate, ssl_keyfile=str(address.key) if address.key else None,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])
