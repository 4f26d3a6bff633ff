"""The HTTP endpoint: its routes, from a form to a job to a response. docs/app.md describes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import showface
from showface.app import schema
from showface.app.docs_page import STYLE, docs_page
from showface.app.forms import (
    FACES_FIELDS,
    INPAINT_FIELDS,
    JOB_ID,
    file_of,
    inpaint_form,
    job_of,
    read_form,
)
from showface.app.guard import CallerGoneError, Guard, Hosts, Limits, Refusal
from showface.app.jobs import Jobs, JobStoppedError, QueueFullError, Work
from showface.app.work import Filled, Model, disposition, faces, inpaint

STATIC = FilePath(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/vnd.microsoft.icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""The types of the page's files. Others are not served."""

ABOUT = "Fill holes in photos of faces. Photos are worked on in memory, one after the other, and nothing is kept."


def create_app(
    models: Mapping[str, Model],
    hosts: Hosts | None = None,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    static: FilePath | None = None,
) -> FastAPI:
    """The app, for any ASGI server. `serve` runs it with uvicorn.

    Args:
        models: from `load_models`; the first is the default.
        hosts: the names by which it may be called. Default: this machine's own, with port 7860.
        token: what requests below /api must carry. None: nothing.
        limits: sizes and times.
        static: the folder of the page; by default the one in this package.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.jobs = Jobs(limits.waiting, limits.job_seconds)
        yield
        # In a thread, since stopped requests are answered meanwhile.
        app.state.ended = await asyncio.to_thread(app.state.jobs.close)

    app = FastAPI(
        title="showface",
        version=showface.__version__,
        description=ABOUT,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, hosts=hosts or Hosts.of("127.0.0.1", 7860), token=token, limits=limits)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    _add_work(app, dict(models), limits)
    _add_information(app, dict(models))
    _add_page(app, static or STATIC)
    return app


def _add_work(app: FastAPI, models: dict[str, Model], limits: Limits) -> None:
    default = next(iter(models))

    @app.post(
        "/api/inpaint",
        response_class=Response,
        responses={200: schema.INPAINT_RESPONSE, **schema.errors(400, 408, 413, 415, 422, 429, 503, 504)},
        openapi_extra=schema.INPAINT_BODY,
    )
    async def fill(request: Request) -> Response:
        """Fill the hole of a photo. Mark the hole in one way: by mask, paint or alpha. Closing the connection stops
        the work."""
        _check_room(app.state.jobs)
        form = inpaint_form(await read_form(request, INPAINT_FIELDS), models, default)
        work, job = partial(inpaint, form, models[form.model], limits.pixels), form.job
        filled, notes = await _run(request, app.state.jobs, work, job)
        return _filled(filled, notes)

    @app.post(
        "/api/faces",
        responses={200: {"model": schema.FoundFaces}, **schema.errors(400, 408, 413, 415, 422, 429, 503, 504)},
        openapi_extra=schema.FACES_BODY,
    )
    async def find(request: Request) -> Response:
        """Find the faces in a photo."""
        _check_room(app.state.jobs)
        form = await read_form(request, FACES_FIELDS)
        work = partial(faces, file_of(form, "photo"), models[default], limits.pixels)
        found, _ = await _run(request, app.state.jobs, work, job_of(form))
        return Response(json.dumps(found), media_type="application/json")


def _add_information(app: FastAPI, models: dict[str, Model]) -> None:
    listed = [
        schema.ModelInfo(
            name=model.name, description=model.description, licence=model.licence, detail=model.usual_detail
        )
        for model in models.values()
    ]

    @app.get("/api/jobs/{job}", responses=schema.errors(422))
    async def job_status(
        job: Annotated[str, Path(description="The id that the form had.", pattern=JOB_ID)],
    ) -> schema.JobStatus:
        """Say how far a job is."""
        return schema.JobStatus(**app.state.jobs.status(job))

    @app.get("/api/models", responses=schema.errors())
    async def list_models() -> schema.ModelList:
        """List the models."""
        return schema.ModelList(models=listed, default=next(iter(models)))

    @app.get("/api/health", responses=schema.errors())
    async def health() -> schema.Health:
        """Say that the server answers."""
        return schema.Health(status="ok", version=showface.__version__)

    @app.get("/api/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_page(app.openapi()), media_type="text/html")

    @app.get("/api/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        return Response(STYLE, media_type="text/css")


def _add_page(app: FastAPI, folder: FilePath) -> None:
    # Only files that are listed now are served, so no path of a request is ever opened.
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in TYPES and path.is_file() and not path.is_symlink()
    }

    def answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name].read_bytes(), media_type=TYPES[files[name].suffix])

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return answer("index.html")

    @app.api_route("/static/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(name: str) -> Response:
        return answer(name)


async def _run(request: Request, jobs: Jobs, work: Work, name: str | None) -> tuple[Any, list[str]]:
    """Do work in the worker thread, and stop it if the caller hangs up.

    Returns:
        Its result and its notes.

    Raises:
        Refusal: the queue is full, the id is taken, or the work raised it.
        CallerGoneError: the caller hung up.
    """
    try:
        job = jobs.submit(work, name)
    except QueueFullError as error:
        raise _queue_full(error) from None
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    except JobStoppedError:
        raise Refusal(503, "the server is stopping") from None
    gone: asyncio.Future[Any] = asyncio.ensure_future(_wait_for_end(request))
    try:
        done: asyncio.Future[Any] = asyncio.wrap_future(job.future)
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # or asyncio logs it
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise CallerGoneError
        return done.result()
    except JobStoppedError:
        raise Refusal(503, "the server is stopping") from None
    finally:
        gone.cancel()
        jobs.stop(job)
        del work  # it holds the photo, and an error holds this frame


async def _wait_for_end(request: Request) -> None:
    """Return when the caller closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_room(jobs: Jobs) -> None:
    """Refuse a request before its body is read, if the queue is full."""
    try:
        jobs.check_room()
    except QueueFullError as error:
        raise _queue_full(error) from None


def _queue_full(error: QueueFullError) -> Refusal:
    seconds = error.retry_after
    sentence = f"the queue is full: try again in {seconds} second{'s' * (seconds != 1)}"
    return Refusal(429, sentence, {"retry-after": str(seconds)})


def _filled(filled: Filled, notes: list[str]) -> Response:
    headers = {
        "X-Showface-Faces": str(filled.faces),
        "X-Showface-Hole-Ratio": f"{filled.hole_ratio:.6f}",
        "X-Showface-Milliseconds": str(filled.milliseconds),
        "X-Showface-Notes": json.dumps(notes),  # in ASCII
        "Content-Disposition": disposition(filled.filename),
    }
    return Response(filled.data, media_type=filled.media_type, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    """An error of the router, in a sentence."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "another method")
    sentences = {404: "there is nothing at this address", 405: f"this address takes {allowed}"}
    return _problem(error.status_code, sentences.get(error.status_code, "this request is invalid"), error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """The only parameter that FastAPI checks is the id of a job."""
    return _problem(422, "the id of a job has 1 to 64 characters: letters, digits and -")


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps({"detail": sentence}), status, headers=headers, media_type="application/json")
