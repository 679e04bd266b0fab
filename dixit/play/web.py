"""Play Dixit in the browser: `python -m dixit.play.web [RUN] [--data stamps|emoji|test|folder:PATH] [--port 8000]`.

You play against three agents of a trained run (default: the run of the game in runs/ that was trained last). Their
clues are captions of its trained speaker, and they choose cards with its listeners; with a run on pictures these are of
different knowledge and image towers, and the page says what each is. The cards are photo stamps if they have been
downloaded, else the run's own test images. The page shows each card as each listener sees it, which card each of them
chooses and the effect of each word; you can also upload an image. Without a trained run there is a practice table:
synthetic scenes as cards, and agents that follow rules. The page /runs plots the metrics of this run, and of other runs
in the same folder, while they train, and shows what their speakers say of a few images, with each listener's belief; a
run without a checkpoint has this page only.

Games are kept in RUN/web, so that a reload or a restart of the server loses nothing. The page is local files in
dixit/play/static and loads nothing else. There are no passwords; by default the server can be reached from this
machine only (--host). The rules are in rules.py, the sessions in tables.py.
"""

from __future__ import annotations

from dixit.common import run_main
from dixit.play import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.web)

import base64
import ipaddress
import json
import math
import re
import secrets
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dixit.common import DixitError
from dixit.config import load_config
from dixit.data.assets import asset
from dixit.play.tables import Tables, load_deck, practice_deck
from dixit.training import said
from dixit.training.checkpoints import checkpoints
from dixit.training.runs import load_run

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
except ImportError as missing:
    print(f"error: the web page needs {missing.name}; install it with: pip install -e '.[demo]'", file=sys.stderr)
    raise SystemExit(2) from None

MAX_UPLOAD_BYTES = 10_000_000  # the same number is in game.js
LOG_BYTES = 1_000_000  # of a log, read per request
PAGES = Path(__file__).parent / "static"
RUNS = Path("runs")
COOKIE, MONTH = "dixit", 30 * 24 * 3600
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (
    b"content-security-policy",
    b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'")]

# --- the page about training ---


def sibling_runs(folder: Path) -> dict[str, Path]:
    """This run and those in the same folder that have a log, by name, the latest first."""
    runs = [p for p in folder.resolve().parent.iterdir() if (p / "log.jsonl").is_file()]
    return {p.name: p for p in sorted(runs, key=lambda p: -(p / "log.jsonl").stat().st_mtime)}


def read_log(folder: Path, file_id: str, start: int) -> dict[str, Any]:
    """Read the rows of RUN/log.jsonl from byte `start` on, at most LOG_BYTES, and the offset to continue from.

    `file_id` is the one that the previous call returned, "" at first. If the log has been replaced since, or cut by a
    resumed training, reading starts again at its beginning and `restarted` is true. An incomplete last line is left
    for the next call.
    """
    path = folder / "log.jsonl"
    with path.open("rb") as log:
        status = path.stat()
        restarted = file_id != str(status.st_ino) or not 0 <= start <= status.st_size
        offset = 0 if restarted else start
        log.seek(offset)
        chunk = log.read(LOG_BYTES)
    complete = chunk[:chunk.rfind(b"\n") + 1]
    answer: dict[str, Any] = {"rows": [row for row in map(_row, complete.splitlines()) if row], "restarted": restarted,
                              "file_id": str(status.st_ino), "offset": offset + len(complete),
                              "more": len(chunk) == LOG_BYTES}
    if restarted:
        try:
            config = load_config(folder / "config.yaml")
            answer |= {"steps": config.train.steps, "weights": {c.name: c.weight for c in config.listeners}}
        except DixitError:  # another version's run
            answer |= {"steps": 0, "weights": {}}
    return answer


def _row(line: bytes) -> dict[str, Any]:
    """The numbers and texts of a line of a log; empty if it is damaged or has no step."""
    try:
        row = json.loads(line)
        return {k: v for k, v in row.items() if (type(v) in (int, float) and math.isfinite(v)) or isinstance(v, str)
                or (isinstance(v, list) and all(isinstance(text, str) for text in v))} if "step" in row else {}
    except (ValueError, AttributeError, TypeError):
        return {}


def read_said(folder: Path, step: int | None) -> dict[str, Any]:
    """The steps at which RUN/said has a table, and the rows of the one at `step`, by default the last.

    The images are PNGs in base64, each once, under their number. A table that has gone, as when a run starts again, is
    empty.
    """
    tables = said.steps(folder)
    step = max(tables, default=0) if step is None else step
    rows = said.read(tables[step]) if step in tables else []
    images = {row["number"]: base64.b64encode(row["image"]["bytes"]).decode() for row in rows}
    return {"steps": list(tables), "step": step, "images": images,
            "rows": [{key: value for key, value in row.items() if key != "image"} for row in rows]}


# --- the server ---


def make_app(folder: Path, tables: Tables | None, hosts: list[str]) -> Any:
    """The ASGI application. Without tables it serves only the page about training."""

    async def page(request: Request) -> Response:
        if tables is None and request.url.path == "/":
            return RedirectResponse("/runs")
        response = FileResponse(PAGES / "index.html", headers={"Cache-Control": "no-cache"})
        session_id = request.cookies.get(COOKIE, "")
        session = session_id if _is_session_id(session_id) else secrets.token_urlsafe(16)
        response.set_cookie(COOKIE, session, max_age=MONTH, httponly=True, samesite="lax")
        return response

    def json_endpoint(method: Callable[[str, Any], Any], read: Callable[[bytes], Any] = lambda body: {},
                      max_bytes: int = 10_000) -> Callable:
        """An endpoint that returns method(session id, read(body)) as JSON; a DixitError becomes {"error": one line}."""
        async def endpoint(request: Request) -> Response:
            try:
                session_id = request.cookies.get(COOKIE, "")
                if not _is_session_id(session_id):
                    raise DixitError("this page needs its cookie; allow it and load the page again")
                body = read(await _body(request, max_bytes))
                result = await run_in_threadpool(method, session_id, body)
                return JSONResponse(result, headers={"Cache-Control": "no-store"})
            except DixitError as error:
                return JSONResponse({"error": str(error)}, 400)
        return endpoint

    async def picture(request: Request) -> Response:
        session_id, card = request.cookies.get(COOKIE, ""), request.path_params["card"]
        if tables is None or not _is_session_id(session_id) or not re.fullmatch(r"own|-?\d{1,6}", card, re.ASCII):
            return Response(status_code=404)
        png = await run_in_threadpool(tables.picture, session_id, card, request.path_params["look"])
        if png is None:
            return Response(status_code=404)
        cache_control = "no-store" if card == "own" else f"private, max-age={MONTH}"
        return Response(png, media_type="image/png", headers={"Cache-Control": cache_control})

    def runs(request: Request) -> Response:
        return JSONResponse({"runs": list(sibling_runs(folder)), "this": folder.resolve().name})

    def log(request: Request) -> Response:
        chosen = sibling_runs(folder).get(request.query_params.get("run", ""))
        if chosen is None:
            return JSONResponse({"error": "there is no such run any more"}, 404)
        start = request.query_params.get("offset", "")
        return JSONResponse(read_log(chosen, request.query_params.get("file_id", ""), int(start) if start.isdecimal()
                                     and len(start) < 16 else 0), headers={"Cache-Control": "no-store"})

    def captions(request: Request) -> Response:
        chosen = sibling_runs(folder).get(request.query_params.get("run", ""))
        step = request.query_params.get("step", "")
        if chosen is None:
            return JSONResponse({"error": "there is no such run any more"}, 404)
        try:
            found = read_said(chosen, int(step) if step.isdecimal() and len(step) < 16 else None)
        except DixitError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    routes: list[Any] = [Route("/", page), Route("/runs", page), Route("/api/runs", runs), Route("/api/log", log),
                         Route("/api/said", captions),
                         Mount("/static", StaticFiles(directory=PAGES))]
    if tables is not None:
        routes += [Route("/api/state", json_endpoint(tables.state)),
                   Route("/api/image", json_endpoint(tables.explain_image)),
                   Route("/picture/{key}/{card}/{look:int}.png", picture)]
        actions = {"new": tables.new, "move": tables.move, "next": tables.next_round, "explain": tables.explain}
        for name, method in actions.items():
            routes.append(Route(f"/api/{name}", json_endpoint(method, _json_body), methods=["POST"]))
        routes.append(Route("/api/image", json_endpoint(tables.save_image, bytes, MAX_UPLOAD_BYTES), methods=["POST"]))
    host_check = Middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return _with_security_headers(Starlette(routes=routes, middleware=[host_check]))


def _with_security_headers(app: Any) -> Any:
    """The application with response headers that forbid scripts from other hosts and framing."""
    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)
        await app(scope, receive, send_with_headers)
    return guarded


def _is_session_id(session_id: str) -> bool:
    """Whether this is a valid session id; it becomes part of a file name."""
    return re.fullmatch(r"[\w-]{22}", session_id, re.ASCII) is not None


async def _body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises DixitError as soon as it is longer than `max_bytes`."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise DixitError(f"that is over {max_bytes / 1e6:g} MB; make it smaller")
        parts.append(part)
    return b"".join(parts)


def _json_body(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DixitError("that is no request of this page; reload it")
    return value


def is_local(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only. Raises DixitError for another text."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise DixitError(f"--host {host} is no address; give one like 127.0.0.1 or 0.0.0.0") from None


def serve(app: Any, host: str, port: int) -> None:
    """Serve the application until Ctrl-C. Raises DixitError if the port is not available."""
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise DixitError(f"cannot listen on {host}, port {port} ({error}); choose another --port") from None
    if not is_local(host):
        print(f"warning: anyone who can reach {host} can play and upload images; there is no password", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{sock.getsockname()[1]} in a browser; Ctrl-C ends", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])


def newest_game_run(folder: Path) -> Path | None:
    """The run in a folder of runs that was trained last, of those of the game with a checkpoint and a clip listener."""
    for log in sorted(folder.glob("**/log.jsonl"), key=lambda path: -path.stat().st_mtime):
        try:
            config = load_config(log.parent / "config.yaml")
        except DixitError:  # another version's run
            continue
        if config.task == "game" and any(c.kind == "clip" for c in config.listeners) and checkpoints(log.parent):
            return log.parent
    return None


def default_cards() -> str:
    """"stamps", or "test" (the run's own test images) if the stamps have not been downloaded."""
    try:
        asset("stamps")
        return "stamps"
    except DixitError:
        print("the cards are the run's own test images; for photo stamps: python -m dixit.data.assets stamps",
              file=sys.stderr)
        return "test"


def main(arguments: Namespace) -> None:
    hosts = LOOPBACK if is_local(arguments.host) else ["*"]
    folder, tables = arguments.run or newest_game_run(RUNS), None
    if folder is None:
        if arguments.data:
            raise DixitError(f"{RUNS} has no trained game to play {arguments.data} with; scripts/quickstart trains one")
        print(f"{RUNS} has no trained game: this is a practice table with agents that follow rules. "
              "scripts/quickstart trains a speaker; then run this command again", file=sys.stderr)
        folder = RUNS / "practice"
        folder.mkdir(parents=True, exist_ok=True)
        tables = Tables(None, practice_deck(), folder / "web")
    elif (folder / "log.jsonl").is_file() and not checkpoints(folder):
        print(f"{folder} has no checkpoint yet: only the page about training is served", file=sys.stderr)
    else:
        run = load_run(folder)
        tables = Tables(run, load_deck(run, arguments.data or default_cards()), folder / "web")
        print(f"playing with {folder}", file=sys.stderr)
    serve(make_app(folder, tables, hosts), arguments.host, arguments.port)
