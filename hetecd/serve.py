"""A small web server: the results in a folder as a list and on maps, and the upload of pairs to be predicted.

For one person on one machine: without accounts, bound to loopback unless told otherwise. Against pages of other sites
in the same browser it checks `Host` (a name that was made to point here is refused) and, where something changes,
`Origin`.
"""

import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from html import escape
from pathlib import Path as FilePath
from string import Template
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

import hetecd
from hetecd.config import Role
from hetecd.errors import AbsentError, HetecdError, InputError, OutputError
from hetecd.gallery import Entry, Gallery, Layer
from hetecd.jobs import Date, Job, Jobs
from hetecd.report import page, part, policy

log = logging.getLogger("hetecd")

HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]
Zoom = Annotated[int, Path(ge=0, le=24)]
Place = Annotated[int, Path(ge=0)]


def serve(
    folder: FilePath | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    images: Sequence[FilePath | str] = (),
    upload_mb: float = 2048,
    options: Sequence[str] = (),
) -> None:
    """Serve a folder until Ctrl-C or a signal that asks to end.

    Args:
        folder: holds results of `hetecd predict` in folders of their own; those of uploads are added.
        host: address to listen on.
        port: 0 = any that is free.
        images: folders in which the images of the pairs may lie, beside ``folder``.
        upload_mb: largest file that is taken.
        options: of `hetecd predict`, for uploads.

    Raises:
        InputError: a folder is missing, or the address cannot be listened on.
        SystemExit: a signal has asked to end; nothing unfinished is left.
    """
    gallery = Gallery(folder, images)
    if not _loopback(host):
        log.warning("serve: %s is not this machine alone: whoever reaches it sees all results and can upload", host)
    jobs = Jobs(gallery.root, options, int(upload_mb * 1e6))
    signals = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    heard = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, _end) for number in heard}
    try:
        config = uvicorn.Config(guarded(make_app(gallery, jobs), host), host, port, log_level="warning")
        listening = _listen(config)
        name = f"[{host}]" if ":" in host else host
        log.info("serving %s at http://%s:%d (Ctrl-C ends)", gallery.root, name, listening.getsockname()[1])
        uvicorn.Server(config).run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        jobs.close()


def _listen(config: uvicorn.Config) -> socket.socket:
    try:
        listening = config.bind_socket()
    except (SystemExit, OverflowError) as error:  # how uvicorn says that it cannot
        raise InputError(
            f"serve: cannot listen on {config.host}:{config.port}; choose another --port or --host"
        ) from error
    listening.listen()  # who reads the line below may come at once
    return listening


def _end(number: int, _: object) -> None:
    """End as by Ctrl-C, with what a shell knows as the end by this signal."""
    raise SystemExit(128 + number)


def _loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- what other sites may not do -------------------------------------------------------------------------------------


def refusal(method: str, headers: Headers, own: str) -> str | None:
    """Why a request is not answered; None where it is.

    Args:
        method: of the request.
        headers: of the request.
        own: name or address that the server listens on.
    """
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        origin = urlsplit(headers["origin"]).netloc if "origin" in headers else host
    except ValueError:
        return "Host or Origin is no address"
    # An address cannot be made to point elsewhere, as names can.
    if name not in ("localhost", own.lower()) and not _is_address(name):
        return f"Host: found {name!r}, expected localhost, an address, or the --host of the server"
    if method not in ("GET", "HEAD") and (
        origin != host or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    ):
        return f"Origin: found {headers.get('origin', 'another site')}, expected a page of this server"
    return None


def guarded(app: App, own: str) -> App:
    """The application behind :func:`refusal`, with headers that keep browsers careful."""

    async def call(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def careful(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = refusal(scope["method"], Headers(scope=scope), own)
        answer: App = JSONResponse({"detail": problem}, 403) if problem else app
        return await answer(scope, receive, careful)

    return call


# --- addresses -------------------------------------------------------------------------------------------------------


def make_app(gallery: Gallery, jobs: Jobs) -> FastAPI:
    """The application: pages for people, and the API that they use."""
    # The usual page about an API is loaded from other machines; ours is made of the same description.
    app = FastAPI(title="hetecd", version=hetecd.__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(HetecdError, _say)
    _add_pages(app, gallery, jobs.limit_bytes)
    _add_results(app, gallery)
    _add_jobs(app, jobs)
    return app


def _say(request: Request, error: Exception) -> Response:
    """An error as one line, on a page or for a program."""
    status = 404 if isinstance(error, AbsentError) else 507 if isinstance(error, OutputError) else 422
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": str(error)}, status)
    return HTMLResponse(_page("message.html", title="Cannot be shown", text=escape(str(error))), status)


def _page(name: str, **words: str) -> str:
    style = part("serve.css")
    scripts = [part("words.js") + part("serve.js")] if name == "serve.html" else []
    allow = policy(scripts, [style], "connect-src 'self'; form-action 'self'")
    return Template(part(name)).substitute(css=style, js="".join(scripts), policy=allow, **words)


def _add_pages(app: FastAPI, gallery: Gallery, limit_bytes: int) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> str:
        return _page("serve.html", folder=escape(gallery.root.name), limit=str(limit_bytes))

    @app.get("/results/{name}", response_class=HTMLResponse, include_in_schema=False)
    def result(name: str) -> str:
        return page(gallery.view(name), "img-src 'self' data: blob:; connect-src 'self'")

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask for one in any case

    @app.get("/api", response_class=HTMLResponse, include_in_schema=False)
    def about() -> str:
        return _page("message.html", title="API", text=describe(app.openapi()))


def _add_results(app: FastAPI, gallery: Gallery) -> None:
    @app.get("/api/results", tags=["results"])
    def results() -> list[Entry]:
        """All results, the newest first."""
        return gallery.entries()

    @app.get("/api/results/{name}", tags=["results"])
    def result(name: str) -> dict[str, Any]:
        """Everything that the page of a result shows: figures, facts, polygons in pixels, addresses of images."""
        return gallery.view(name)

    @app.get("/api/results/{name}/bins", tags=["results"])
    def bins(name: str) -> list[list[int]]:
        """For each polygon: a first hundredth of probability, then its pixels in that one and each above."""
        return gallery.bins(name)

    @app.get("/api/results/{name}/files/{file}", tags=["results"], response_class=FileResponse)
    def file(name: str, file: str) -> FileResponse:
        """Download change.tif, probability.tif, change.gpkg or summary.json."""
        return FileResponse(gallery.file(name, file), filename=f"{name}-{file}")

    @app.get("/api/results/{name}/{layer}/whole", tags=["images"], response_class=Response)
    def whole(name: str, layer: Layer) -> Response:
        """A layer as one coarse image; probability as grey: 0 = no data, else its hundredth from 1."""
        return _image(gallery.whole(name, layer))

    @app.get("/api/results/{name}/{layer}/tiles/{zoom}/{col}/{row}", tags=["images"], response_class=Response)
    def tile(name: str, layer: Layer, zoom: Zoom, col: Place, row: Place) -> Response:
        """A tile of 256 px on the grid of the map; zoom 0 is one tile for everything, each level doubles the size."""
        return _image(gallery.tile(name, layer, zoom, col, row))


def _image(coded: bytes) -> Response:
    kind = "image/png" if coded.startswith(b"\x89PNG") else "image/webp"
    return Response(coded, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def _add_jobs(app: FastAPI, jobs: Jobs) -> None:
    @app.get("/api/jobs", tags=["jobs"])
    def all_jobs() -> list[Job]:
        """All uploads since the server started."""
        return list(jobs.all.values())

    @app.post("/api/jobs", tags=["jobs"], status_code=201)
    def announce(name: str, before_is: Annotated[Role | None, Query()] = None) -> Job:
        """Announce a pair; then put both files. `before_is`: by default as the weights were trained."""
        return jobs.open(name, before_is)

    @app.put("/api/jobs/{id}/{date}", tags=["jobs"])
    async def upload(id: str, date: Date, request: Request) -> Job:
        """The file of one date as the body: GeoTIFF, PNG or JPEG 2000. With both there, the pair waits its turn."""
        job, length = jobs.find(id), request.headers.get("content-length", "")
        try:
            await jobs.receive(job, date, request.stream(), int(length) if length.isdigit() else None)
        except ClientDisconnect:
            raise HTTPException(400, "the upload was interrupted") from None
        return job

    @app.get("/api/jobs/{id}", tags=["jobs"])
    def job(id: str) -> Job:
        """How far a pair is."""
        return jobs.find(id)

    @app.delete("/api/jobs/{id}", tags=["jobs"])
    def cancel(id: str) -> Job:
        """End an upload or a prediction; nothing of it is left."""
        found = jobs.find(id)
        jobs.cancel(found)
        return found


def describe(schema: dict[str, Any]) -> str:
    """An OpenAPI description as HTML that needs nothing else."""
    out = ['<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>']
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            rows = {p["name"]: _kind(p["schema"]) + ("" if p["required"] else ", optional")
                    for p in about.get("parameters", [])}  # fmt: skip
            out.append(_described(f"<code>{method.upper()} {escape(path)}</code>", about.get("description", ""), rows))
    for name, kind in schema.get("components", {}).get("schemas", {}).items():
        rows = {key: _kind(value) for key, value in kind.get("properties", {}).items()}
        out.append(_described(escape(name), kind.get("description", ""), rows))
    return "".join(out)


def _described(title: str, text: str, rows: dict[str, str]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(kind)}</td></tr>" for key, kind in rows.items()
    )
    return f"<h2>{title}</h2><p>{escape(text)}</p><table>{cells}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    kind = str(schema.get("type", "anything"))
    return f"list of {_kind(schema.get('items', {}))}" if kind == "array" else kind
