"""An index in an object store, on a server of this machine that speaks S3."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcl.errors import UserError
from mmcl.search import Index
from tests.search.test_approximate import Looked
from tests.search.test_calibration import write_images

SERVER = shutil.which("moto_server")
SECONDS = 120


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URL of an empty bucket, which the variables of the environment lead to."""
    if SERVER is None:
        pytest.skip("needs moto_server on the PATH, from any environment: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    patch = pytest.MonkeyPatch()
    try:
        make_bucket(f"http://127.0.0.1:{port}/team")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        yield "s3://team"
    finally:
        patch.undo()
        server.kill()
        server.wait()


def make_bucket(url: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.long
def test_an_index_in_an_object_store_equals_one_on_disk(bucket: str, tmp_path: Path) -> None:
    photos, place = tmp_path / "photos", f"{bucket}/photos.mmcl"
    write_images(photos, range(20))
    with pytest.raises(UserError, match=r"no such index"):
        Index.open(place)
    Index.build(photos, Looked(), out=place)
    Index.build(photos, Looked(), out=tmp_path / "index")
    assert Index.is_saved(place)
    with Index.open(place, Looked(), mode="w") as remote, Index.open(tmp_path / "index", Looked(), mode="w") as local:
        (photos / "003.png").rename(photos / "103.png")
        write_images(photos, range(30, 33))
        for index in (remote, local):
            report = index.sync()
            assert (report.moved, report.new, report.encoded) == (1, 3, 3)
            assert index.sync().commits == 0
            assert index.verify() == []
        assert remote.search("5", top_k=30) == local.search("5", top_k=30)
        assert remote.search("5", where='path contains "1"') == local.search("5", where='path contains "1"')
        versions = remote.versions()
        assert len(versions) > 2
        remote.build_ann()
        near = remote.search("5", top_k=3)
        assert (near, near.exact) == (local.search("5", top_k=3), False)
        remote.drop_ann()
        reader = Index.open(place, Looked())
        remote.restore(versions[-1].number)
        reader.refresh()
        assert len(reader) == versions[-1].rows
        other = Looked()
        other.fingerprint = "other"
        with pytest.raises(UserError, match="another model"):
            Index.build(photos, other, out=place)
