"""Running the server of the page: where it listens, and what is printed."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from mmcl.errors import UserError, how_to_install

if TYPE_CHECKING:
    import uvicorn

    from mmcl.serve.gallery import Gallery
    from mmcl.serve.guard import Guard

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOKEN_BYTES = 16
_CONNECTIONS = 512


def check_serve(host: str, port: int, token: bool) -> None:
    """Checks before a model is loaded.

    Raises:
        UserError: the extra is not installed, others could see the page without a token, or the address cannot be listened at.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: {how_to_install('serve')}") from None
    if host not in LOOPBACK and not token:
        raise UserError(f"--host {host} lets other machines in, so a token is needed; leave out --token none")
    listen(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if the address is taken or not of this machine."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: give a number from 1 to 65535, or 0 for any that is free")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(_CONNECTIONS)
        except OSError:
            found.close()
            raise
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot listen at {host}:{port} ({why}); give another --port, or --port 0 for any") from None
    return found


def serve(gallery: Gallery, *, host: str, port: int, token: bool, announce: Callable[[str], None]) -> None:
    """Serves a gallery until the process is interrupted.

    Args:
        gallery: what is shown.
        host, port: where; port 0 takes a free one.
        token: ask for a token, which the link contains.
        announce: called with the link once the server listens.

    Raises:
        UserError: as `check_serve`.
    """
    import uvicorn

    from mmcl.serve.app import create_app
    from mmcl.serve.guard import Session

    with closing(listen(host, port)) as listening:
        port = listening.getsockname()[1]
        secret = secrets.token_urlsafe(_TOKEN_BYTES) if token else None
        names = () if host in LOOPBACK else (socket.gethostname(), socket.getfqdn())
        app = create_app(gallery, Session(secret, port), host=host, names=names)
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{port}/" + (f"#token={secret}" if secret else ""))
        run_server(uvicorn.Server(config_of(app)), listening)


def config_of(app: Guard) -> uvicorn.Config:
    """Returns the settings of the server: no log of requests, which contain questions, and no word about its software."""
    import uvicorn

    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )


def run_server(server: uvicorn.Server, listening: socket.socket) -> None:
    """Runs a server of uvicorn at a socket until it is stopped."""
    server.run(sockets=[listening])
