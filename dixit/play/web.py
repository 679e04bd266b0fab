"""Dixit in the browser: `python -m dixit.play.web [RUN] [--data stamps|emoji|test|folder:PATH] [--port 8000]`.

You against three agents of a trained run (without RUN: of the game in runs/ that was trained last). They tell with the
captions of its trained speaker and judge with its listeners, each with its own eyes. You see each card as each listener
sees it, what each of them picks and which words moved it, and may try an image of your own. Where nothing is trained
yet there is a practice table: drawn scenes for cards, and agents that know some words and the rules. The page /runs
draws the figures of this run and those beside it while they train; of a run without a checkpoint yet, there is only
that page.

Games are kept in RUN/web, so that a reload or a restart of the server loses nothing. Nothing comes from elsewhere:
the page is three files in dixit/static. There are no passwords: the server can be reached from this machine only,
unless --host says otherwise. The rules are in play.py, the games in rooms.py.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import math
import re
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dixit.common import DixitError, run_main
from dixit.config import load_config
from dixit.data.assets import asset
from dixit.play.tables import Tables, open_deck, practice_deck
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

MOST_BYTES = 10_000_000  # of an upload; dixit.js says so too
LOG_BYTES = 1_000_000  # of a log, read at a time
PAGES = Path(__file__).parent / "static"
RUNS = Path("runs")
COOKIE, MONTH = "dixit", 30 * 24 * 3600
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (
    b"content-security-policy",
    b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'")]

# --- training, as it goes ---


def runs_beside(folder: Path) -> dict[str, Path]:
    """This run and those in the same folder that have a log, the latest first."""
    found = [p for p in folder.resolve().parent.iterdir() if (p / "log.jsonl").is_file()]
    return {p.name: p for p in sorted(found, key=lambda p: -(p / "log.jsonl").stat().st_mtime)}


def log_part(folder: Path, mark: str, start: int) -> dict[str, Any]:
    """The rows of RUN/log.jsonl from byte `start` on, LOG_BYTES at most, and where to go on.

    `mark` says which file the reader has begun. If the log was begun anew, or cut by a resumed training, the rows are
    those from its beginning and `anew` is true. A line that is still being written is left for the next time.
    """
    path = folder / "log.jsonl"
    with path.open("rb") as log:
        found = path.stat()
        anew = mark != str(found.st_ino) or not 0 <= start <= found.st_size
        at = 0 if anew else start
        log.seek(at)
        chunk = log.read(LOG_BYTES)
    whole = chunk[:chunk.rfind(b"\n") + 1]
    answer: dict[str, Any] = {"rows": [row for row in map(_row, whole.splitlines()) if row], "anew": anew,
                              "mark": str(found.st_ino), "at": at + len(whole), "more": len(chunk) == LOG_BYTES}
    if anew:
        try:
            config = load_config(folder / "config.yaml")
            answer |= {"steps": config.train.steps, "weights": {c.name: c.weight for c in config.listeners}}
        except DixitError:  # another version's run
            answer |= {"steps": 0, "weights": {}}
    return answer


def _row(line: bytes) -> dict[str, Any]:
    """The figures and texts of a line that are fit to be shown; nothing if it is damaged."""
    try:
        row = json.loads(line)
        return {k: v for k, v in row.items() if (type(v) in (int, float) and math.isfinite(v)) or isinstance(v, str)
                or (isinstance(v, list) and all(isinstance(text, str) for text in v))} if "step" in row else {}
    except (ValueError, AttributeError, TypeError):
        return {}


# --- the server ---


def make_app(folder: Path, house: Tables | None, hosts: list[str]) -> Any:
    """The application. Without a house there is only the page about training."""

    async def page(request: Request) -> Response:
        if house is None and request.url.path == "/":
            return RedirectResponse("/runs")
        answer = FileResponse(PAGES / "index.html", headers={"Cache-Control": "no-cache"})
        who = request.cookies.get(COOKIE, "")
        answer.set_cookie(COOKIE, who if _sound(who) else secrets.token_urlsafe(16), max_age=MONTH, httponly=True,
                          samesite="lax")
        return answer

    def calls(work: Callable[[str, Any], Any], read: Callable[[bytes], Any] = lambda body: {},
              most: int = 10_000) -> Callable:
        """An address that answers with what `work` makes of the session's id and the body; errors are one line."""
        async def endpoint(request: Request) -> Response:
            try:
                who = request.cookies.get(COOKIE, "")
                if not _sound(who):
                    raise DixitError("this page needs its cookie; allow it and load the page again")
                asked = read(await _body(request, most))
                return JSONResponse(await run_in_threadpool(work, who, asked), headers={"Cache-Control": "no-store"})
            except DixitError as error:
                return JSONResponse({"error": str(error)}, 400)
        return endpoint

    async def picture(request: Request) -> Response:
        who, what = request.cookies.get(COOKIE, ""), request.path_params["what"]
        if house is None or not _sound(who) or not re.fullmatch(r"own|-?\d{1,6}", what, re.ASCII):
            return Response(status_code=404)
        found = await run_in_threadpool(house.show, who, what, request.path_params["look"])
        if found is None:
            return Response(status_code=404)
        kept = "no-store" if what == "own" else f"private, max-age={MONTH}"
        return Response(found, media_type="image/png", headers={"Cache-Control": kept})

    def runs(request: Request) -> Response:
        return JSONResponse({"runs": list(runs_beside(folder)), "this": folder.resolve().name})

    def log(request: Request) -> Response:
        found = runs_beside(folder).get(request.query_params.get("run", ""))
        if found is None:
            return JSONResponse({"error": "there is no such run any more"}, 404)
        start = request.query_params.get("at", "")
        return JSONResponse(log_part(found, request.query_params.get("mark", ""), int(start) if start.isdecimal()
                                     and len(start) < 16 else 0), headers={"Cache-Control": "no-store"})

    routes: list[Any] = [Route("/", page), Route("/runs", page), Route("/api/runs", runs), Route("/api/log", log),
                         Mount("/static", StaticFiles(directory=PAGES))]
    if house is not None:
        routes += [Route("/api/state", calls(house.state)), Route("/api/image", calls(house.image)),
                   Route("/picture/{key}/{what}/{look:int}.png", picture)]
        for name, work in {"new": house.new, "move": house.move, "next": house.go_on, "explain": house.explain}.items():
            routes.append(Route(f"/api/{name}", calls(work, _asked), methods=["POST"]))
        routes.append(Route("/api/image", calls(house.keep_image, bytes, MOST_BYTES), methods=["POST"]))
    return _guarded(Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]))


def _guarded(app: Any) -> Any:
    """The application with headers that keep others' scripts and frames out."""
    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def sends(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)
        await app(scope, receive, sends)
    return guarded


def _sound(who: str) -> bool:
    """Whether it is a session's id, which is part of a file's name."""
    return re.fullmatch(r"[\w-]{22}", who, re.ASCII) is not None


async def _body(request: Request, most: int) -> bytes:
    """What was sent. Raises DixitError as soon as it is more than `most` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise DixitError(f"that is over {most / 1e6:g} MB; make it smaller")
        parts.append(part)
    return b"".join(parts)


def _asked(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise DixitError("that is no request of this page; load it again")
    return asked


def is_local(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise DixitError(f"--host {host} is no address; give one like 127.0.0.1 or 0.0.0.0") from None


def serve(app: Any, host: str, port: int) -> None:
    """Until Ctrl-C. Raises DixitError if the port cannot be had."""
    try:
        here = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise DixitError(f"cannot listen on {host}, port {port} ({error}); choose another --port") from None
    if not is_local(host):
        print(f"warning: whoever reaches {host} can play and upload images; there is no password", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{here.getsockname()[1]} in a browser; Ctrl-C ends", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[here])


def newest_game(folder: Path) -> Path | None:
    """The run in a folder of runs that trained last of those that can be played with."""
    for log in sorted(folder.glob("**/log.jsonl"), key=lambda path: -path.stat().st_mtime):
        try:
            config = load_config(log.parent / "config.yaml")
        except DixitError:  # another version's run
            continue
        if config.task == "game" and any(c.kind == "clip" for c in config.listeners) and checkpoints(log.parent):
            return log.parent
    return None


def default_cards() -> str:
    """Photo stamps, or the run's own test images where the stamps have not been fetched."""
    try:
        asset("stamps")
        return "stamps"
    except DixitError:
        print("the cards are the run's own test images; for photo stamps: python -m dixit.data.assets stamps",
              file=sys.stderr)
        return "test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder, e.g. runs/colour_vs_grey")
    parser.add_argument("--data", help="the cards; test: the run's own test split; or as in eval.transfer: stamps, "
                        "emoji, cifar10, folder:PATH (default: stamps, or test where there are none)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    arguments = parser.parse_args()
    hosts = LOOPBACK if is_local(arguments.host) else ["*"]
    folder, house = arguments.run or newest_game(RUNS), None
    if folder is None:
        if arguments.data:
            raise DixitError(f"{RUNS} holds no trained game to look at {arguments.data}; scripts/quickstart trains one")
        print(f"{RUNS} holds no trained game: at this practice table agents play by rule. scripts/quickstart trains a "
              "speaker; run this command again then", file=sys.stderr)
        folder = RUNS / "practice"
        folder.mkdir(parents=True, exist_ok=True)
        house = Tables(None, practice_deck(), folder / "web")
    elif (folder / "log.jsonl").is_file() and not checkpoints(folder):
        print(f"{folder} has no checkpoint yet: only the page about training is served", file=sys.stderr)
    else:
        run = load_run(folder)
        house = Tables(run, open_deck(run, arguments.data or default_cards()), folder / "web")
        print(f"playing with {folder}", file=sys.stderr)
    serve(make_app(folder, house, hosts), arguments.host, arguments.port)


if __name__ == "__main__":
    run_main(main)
