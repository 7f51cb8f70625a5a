"""The page and what it asks, which any other program may ask too: `/openapi.json` describes it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from src.datamodules.images import printable
from src.indexing import gallery
from src.running.cli import on_one_line
from src.serving.guard import Guard
from src.serving.searcher import Full, Hit, Searcher

BYTES = 10 * 2**20  # of an image that is searched with
MOST = 100  # neighbours of an answer
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HERE = File(__file__).parent


class Neighbor(BaseModel):
    """An image of the index."""

    row: int = Field(description="Its row in the index, from 0; `/image/{row}` shows it.")
    name: str = Field(description="Its name, relative to where the index says its images are.")
    similarity: float = Field(description="The cosine similarity of its vector to the query's, -1 to 1.")


class Answer(BaseModel):
    """What was found."""

    name: str | None = Field(description="The query's name, where it is an image of the index.")
    neighbors: list[Neighbor] = Field(description="The most similar images, most similar first, without the query.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="A line for a person.")


WORDS = {
    400: "It is no image, or a broken one.",
    403: "Asked by another site's page, or by another name than this machine's own.",
    404: "There is no such row, or its file is gone.",
    408: "It took too long.",
    413: "The image is too large.",
    422: "A parameter is not what it may be.",
    503: "Too many ask at this moment; try again after the seconds in `Retry-After`.",
}
K = Annotated[int, Query(ge=1, le=MOST, description="How many neighbours; fewer come if the index has fewer.")]
Row = Annotated[int, Path(ge=0, description="A row of the index, from 0.")]


def create(searcher: Searcher, port: int, k: int) -> ASGIApp:
    """The application.

    Args:
        searcher: who answers.
        port: the one it listens at.
        k: neighbours where none are asked for.
    """
    index = searcher.index
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("page.html")
    style = Markup(File(gallery.__file__).with_suffix(".css").read_text() + (HERE / "page.css").read_text())
    script = Markup((HERE / "page.js").read_text())
    app = FastAPI(
        title="Search by image",
        description=f"{len(index):,} images, by the cosine similarity of their vectors.",
        docs_url=None,  # FastAPI's pages of documentation come from a network
        redoc_url=None,
        responses=refusals(403, 408),
    )

    @contextmanager
    def admitted(row: int = 0) -> Iterator[None]:
        if row >= len(index):
            raise HTTPException(404, f"row {row}: the index has {len(index):,} images, 0 to {len(index) - 1}")
        try:
            with searcher.admitted():
                yield
        except Full as error:
            raise HTTPException(503, "too many ask at this moment: try again", {"Retry-After": "1"}) from error

    @app.exception_handler(RequestValidationError)
    async def tell(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(ClientDisconnect)
    async def let_go(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody hears

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        nonce = secrets.token_urlsafe(18)
        html = page.render(
            nonce=nonce,
            style=style,
            script=script,
            count=len(index),
            place=printable(index.meta["images"]),
            choices=sorted({k, 6, 12, 24, 48, MOST}),
            k=k,
            bytes=BYTES,
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY.format(nonce)})

    @app.post(
        "/search",
        summary="The images most similar to one that is sent",
        responses=refusals(400, 413, 422, 503),
        openapi_extra={
            "requestBody": {
                "description": "The bytes of an image file: PNG, JPEG, WebP, BMP, GIF (the first frame) or TIFF.",
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
                "required": True,
            }
        },
    )
    async def find(request: Request, k: K = k) -> Answer:
        with admitted():
            content = bytearray()
            async for chunk in request.stream():
                content += chunk
                if len(content) > BYTES:
                    raise HTTPException(413, f"the image is larger than {BYTES // 2**20} MiB", {"Connection": "close"})
            if not content:
                raise HTTPException(400, "the image is empty")
            try:
                return answer(None, await searcher.by_image(bytes(content), k))
            except OSError as error:
                raise HTTPException(400, on_one_line(" ".join(str(error).split())[:300])) from error

    @app.get(
        "/neighbors/{row}", summary="The images most similar to one of the index", responses=refusals(404, 422, 503)
    )
    async def neighbors(row: Row, k: K = k) -> Answer:
        with admitted(row):
            return answer(searcher.name(row), await searcher.by_row(row, k))

    @app.get(
        "/image/{row}",
        summary="An image of the index, small",
        response_class=Response,
        responses={**refusals(404, 422, 503), 200: {"content": {"image/webp": {}}, "description": "WebP."}},
    )
    async def image(row: Row) -> Response:
        with admitted(row):
            try:
                return Response(await searcher.picture(row), media_type="image/webp")
            except (OSError, ValueError, LookupError) as error:
                raise HTTPException(404, f"the image of row {row} is no longer there") from error

    return Guard(app, port)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the description of what may be answered."""
    return {status: {"model": Problem, "description": WORDS[status]} for status in statuses}


def answer(name: str | None, hits: list[Hit]) -> Answer:
    """What was found, for the wire."""
    return Answer(name=name, neighbors=[Neighbor(**hit._asdict()) for hit in hits])
