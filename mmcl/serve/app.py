"""The endpoints of the page. None of them writes anything, reads a path, or fetches an address that a request names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from mmcl.errors import UserError
from mmcl.logging import get_logger
from mmcl.serve import gallery as galleries
from mmcl.serve.gallery import MAX_LABELS, Gallery
from mmcl.serve.guard import Guard, Session
from mmcl.serve.pictures import MAX_UPLOADS, check_upload

logger = get_logger(__name__)

T = TypeVar("T")

SESSION_PATH = "/api/session"
MAX_TEXT, MAX_K, MAX_OFFSET, MAX_IDS = 1000, 500, 10_000, 10_000
_WAITING = 64
"""Questions that may wait; more are asked to come back."""
_DECODES, _DECODE_SECONDS = 2, 20.0
_FOREVER = "private, max-age=31536000, immutable"
_STATIC = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in ("app", "api", "dom", "grid", "detail", "views", "state")},
}

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Sort = Literal["taken", "-taken"]
Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Search(BaseModel):
    """Fields of a question, as of the address of a GET and of the form of a POST."""

    model_config = ConfigDict(extra="forbid")

    q: list[Text] = Field(default=[], max_length=8)
    negative: list[Text] = Field(default=[], max_length=8)
    like: list[Id] = Field(default=[], max_length=8)
    where: Text | None = None
    k: int = Field(default=60, ge=1, le=MAX_K)
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET)
    sort: Sort | None = None
    min_match: float | None = Field(default=None, gt=0, lt=1, allow_inf_nan=False)

    def to_query(self, images: Sequence[bytes] = ()) -> galleries.Query:
        """Returns the question with clean texts."""
        return galleries.Query(
            texts=_texts(self.q),
            negatives=_texts(self.negative),
            images=images,
            like=self.like,
            where=_clean(self.where or "") or None,
            sort=self.sort,
            k=self.k,
            offset=self.offset,
            min_match=self.min_match,
        )


class Token(BaseModel):
    """Body of the exchange of a token."""

    token: str = Field(max_length=100)


class ZeroShot(BaseModel):
    """Body of a comparison with labels."""

    labels: list[Text] = Field(min_length=1, max_length=MAX_LABELS)
    templates: list[Text] = Field(default=["{}"], min_length=1, max_length=10)
    where: Text | None = None


class Export(BaseModel):
    """Body of an export."""

    ids: list[Id] = Field(min_length=1, max_length=MAX_IDS)
    format: Literal["csv", "json"] = "csv"


class Busy(Exception):
    """Too many questions wait."""


class Desk:
    """Answers one question at a time: the model and the processor's cores are one."""

    def __init__(self) -> None:
        self._lock, self._waiting = asyncio.Lock(), 0
        self._decodes = asyncio.Semaphore(_DECODES)

    async def ask(self, work: Callable[[], T]) -> T:
        """Runs work in a thread, after what came before. Raises Busy if too much did."""
        if self._waiting >= _WAITING:
            raise Busy
        self._waiting += 1
        try:
            async with self._lock:
                return await run_in_threadpool(work)
        finally:
            self._waiting -= 1

    async def decode(self, work: Callable[[], T]) -> T:
        """Runs the decoding of an image in a thread, two at a time. Raises UserError if it takes too long."""
        # A thread cannot be stopped: its place is free only when it ends, though nobody waits for it any more.
        task = asyncio.ensure_future(self._decoded(work))
        try:
            return await asyncio.wait_for(asyncio.shield(task), _DECODE_SECONDS)
        except TimeoutError:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise UserError("the image takes too long to decode") from None

    async def _decoded(self, work: Callable[[], T]) -> T:
        async with self._decodes:
            return await run_in_threadpool(work)


def create_app(gallery: Gallery, session: Session, *, host: str = "127.0.0.1", names: Sequence[str] = ()) -> Guard:
    """Builds the application that a server runs.

    Args:
        gallery: what is shown.
        session: who may see it.
        host: address of the server.
        names: further names of the machine.
    """
    # No pages of documentation: they load scripts from other servers.
    app = FastAPI(title="mmcl", docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_page(app, session)
    desk = Desk()
    _add_questions(app, gallery, desk)
    _add_images(app, gallery, desk)
    return Guard(app, session, host=host, names=names, session_path=SESSION_PATH)


def _add_page(app: FastAPI, session: Session) -> None:
    folder = files("mmcl.serve") / "static"
    contents = {name: (folder / name).read_bytes() for name in _STATIC}

    def static(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=_STATIC[name], headers={"cache-control": "no-cache"})

    @app.get("/")
    async def page() -> Response:
        return static("index.html")

    @app.get("/static/{name}")
    async def file(name: str) -> Response:
        return static(name)

    @app.post(SESSION_PATH)
    async def exchange(body: Token) -> Response:
        cookie = session.cookie_for(body.token)
        if cookie is None:
            return _error(401, "this token is not that of this server; open the link that it printed last")
        return Response(status_code=204, headers={"set-cookie": cookie})


def _add_questions(app: FastAPI, gallery: Gallery, desk: Desk) -> None:
    @app.get("/api/health")
    async def health() -> Any:
        return await desk.ask(gallery.about)

    @app.get("/api/facets")
    async def facets() -> Any:
        return await desk.ask(gallery.facets)

    @app.get("/api/search")
    async def search(search: Annotated[Search, Query()]) -> Any:
        return await desk.ask(partial(gallery.search, search.to_query()))

    @app.post("/api/search")
    async def search_with_images(request: Request) -> Any:
        fields, images = await _form(request)
        search = Search.model_validate(fields)
        checked = [await desk.decode(partial(check_upload, image, f"picture {n}")) for n, image in enumerate(images, 1)]
        return await desk.ask(partial(gallery.search, search.to_query(checked)))

    @app.get("/api/similar/{id}")
    async def similar(id: Id, k: Annotated[int, Query(ge=1, le=MAX_K)] = 60, where: Text | None = None) -> Any:
        found = await desk.ask(partial(gallery.search, Search(like=[id], k=min(k + 1, MAX_K), where=where).to_query()))
        return {**found, "rows": [row for row in found["rows"] if row["id"] != id][:k]}

    @app.get("/api/duplicates")
    async def duplicates(
        threshold: Annotated[float, Query(ge=0.5, le=1, allow_inf_nan=False)] = 0.97,
        cursor: Annotated[int, Query(ge=0, le=10**6)] = 0,
    ) -> Any:
        return await desk.ask(partial(gallery.duplicates, threshold, cursor))

    @app.post("/api/zeroshot")
    async def zero_shot(body: ZeroShot) -> Any:
        labels, templates = _texts(body.labels), _texts(body.templates)
        return await desk.ask(partial(gallery.zero_shot, labels, templates, _clean(body.where or "") or None))

    @app.get("/api/item/{id}")
    async def item(id: Id) -> Any:
        return await desk.ask(partial(gallery.item, id))

    @app.post("/api/export")
    async def export(body: Export) -> Response:
        content = await desk.ask(partial(gallery.export, body.ids, body.format))
        kind = "text/csv; charset=utf-8" if body.format == "csv" else "application/json"
        return Response(content, media_type=kind, headers={"content-disposition": f"attachment; filename=mmcl.{body.format}"})


def _add_images(app: FastAPI, gallery: Gallery, desk: Desk) -> None:
    async def shown(make: Callable[[], bytes]) -> Response:
        return Response(await desk.decode(make), media_type="image/jpeg", headers={"cache-control": _FOREVER})

    @app.get("/api/thumb/{id}")
    async def thumb(id: Id) -> Response:
        return await shown(partial(gallery.thumb, id))

    @app.get("/api/image/{id}")
    async def image(id: Id) -> Response:
        return await shown(partial(gallery.image, id))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> Response:
        return _error(404 if str(error).startswith("no image ") else 422, str(error))

    @app.exception_handler(RequestValidationError)
    async def of_field(request: Request, error: RequestValidationError) -> Response:
        return _error(422, _first(error.errors()))

    @app.exception_handler(ValueError)
    async def of_form(request: Request, error: ValueError) -> Response:
        found = getattr(error, "errors", None)
        return _error(422, _first(found()) if found else "the request cannot be read")

    @app.exception_handler(Busy)
    async def of_load(request: Request, error: Busy) -> Response:
        return _error(503, "too many questions at once; try again", {"retry-after": "1"})

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, {404: "there is no such page"}.get(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def of_us(request: Request, error: Exception) -> Response:
        logger.error(
            f"{request.method} {request.url.path.split('/')[1:3]}: a bug in mmcl: {type(error).__name__}", exc_info=error
        )
        return _error(500, "this is a bug in mmcl; the terminal of the server shows it")


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason}, status, headers)


def _first(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors, in a line."""
    place = ".".join(str(part) for part in errors[0]["loc"] if part not in ("query", "body", "path"))
    return f"{place}: {errors[0]['msg']}" if place else str(errors[0]["msg"])


async def _form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    """Fields and files of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(422, "send a form (multipart/form-data)")
    fields: dict[str, Any] = {}
    images = []
    try:
        async with request.form(max_files=MAX_UPLOADS, max_fields=32) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(await value.read())
                elif name in ("q", "negative", "like"):
                    fields.setdefault(name, []).append(value)
                else:
                    fields[name] = value
    except (MultiPartException, HTTPException) as error:
        raise HTTPException(422, f"the form cannot be read ({getattr(error, 'detail', None) or 'damaged'})") from None
    return fields, images


def _texts(texts: Sequence[str]) -> list[str]:
    return [text for text in map(_clean, texts) if text]


def _clean(text: str) -> str:
    """Without what no text has: NUL, and halves of characters beyond U+FFFF."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode().strip()
