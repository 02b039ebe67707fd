"""`mmcl serve`: a page over a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmcl.cli.options import Device
from mmcl.cli.output import say
from mmcl.cli.search import index_of


def serve(
    collection: str,
    /,
    *,
    images: str | None = None,
    port: int = 8765,
    host: str = "127.0.0.1",
    token: Literal["auto", "none"] = "auto",
    device: Device = None,
) -> None:
    """Search a collection on a page in the browser.

    Examples:
        mmcl serve runs/clip_emoji
        mmcl serve runs/clip_emoji --images photos/

    The page searches by text, by an image that is dropped or pasted, and by what an image should not show; it filters, compares
    the collection with labels, finds more of the same kind, and saves lists. It changes nothing, needs no network, and runs
    until Ctrl-C. The link has a token, without which nobody else on this machine sees the page.

    Args:
        collection: An index, or a model with --images. Of a run without --images, what it was evaluated on.
        images: A folder, a table or a saved index to search in, with the model before it.
        port: Where to listen. 0 takes any that is free.
        host: Address to listen at. Another than 127.0.0.1 lets other machines in, who need the token.
        token: none lets all users of this machine in without one.
    """
    from mmcl.serve.running import check_serve
    from mmcl.serve.running import serve as run_server

    check_serve(host, port, token == "auto")
    index = index_of(collection, images, device)
    from mmcl.serve.gallery import Gallery

    gallery = Gallery(index.store, index.model, Path(images or collection).name)

    def announce(link: str) -> None:
        say(f"{len(index):,} images at {link}")
        say("Ctrl-C ends it")

    try:
        run_server(gallery, host=host, port=port, token=token == "auto", announce=announce)
    except KeyboardInterrupt:
        say("ended")
