"""The web page's server without a browser: games, what stays hidden, restarts, uploads, logs; and what is behind it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from dixit.common import DixitError, rng
from dixit.config import ListenerConfig
from dixit.play import rules, tables, web
from dixit.play.explain import caption_images, listener_labels, listener_response
from dixit.play.players import Agent
from dixit.play.tables import YOU, Tables, load_deck
from dixit.play.terminal import detect_method, render
from dixit.training import game as reference_game
from dixit.training.runs import load_run

BASE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def loaded(game_run, tiny, folder_of_cards):
    """A run and its deck, opened once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        run = load_run(game_run)
        return run, load_deck(run, f"folder:{folder_of_cards}")


@pytest.fixture
def games(loaded, tmp_path) -> Tables:
    return Tables(*loaded, tmp_path / "web")


def visit(games: Tables | None, folder: Path, session_id: str = "") -> TestClient:
    """A browser that has opened the page, for the first time or with an earlier cookie."""
    cookies = {"dixit": session_id} if session_id else None
    client = TestClient(web.make_app(folder, games, ["127.0.0.1"]), base_url=BASE, cookies=cookies)
    assert client.get("/").status_code == 200
    return client


def my_move(state: dict, draws: np.random.Generator) -> dict:
    """Any legal move, from what the page shows."""
    game = state["game"]
    if game["phase"] == "tell":
        return {"card": int(draws.choice(game["hand"])), "clue": "a red ring"}
    if game["phase"] == "submit":
        return {"cards": [int(draws.choice(game["hand"]))]}
    return {"place": int(draws.choice(game["may_vote"]))}


def check_nothing_is_hidden(client: TestClient, games: Tables, state: dict) -> None:
    """All that the page gets is what the player may see."""
    game = games.sessions[client.cookies["dixit"]].game
    assert state["game"] == json.loads(json.dumps(rules.view(game, YOU)))
    assert state.keys() == {"run", "deck", "key", "cards", "goals", "max_clue_length", "listeners", "you", "names",
                            "agent_listeners", "game", "pending", "texts", "clues"}
    mine = {*game.hands[YOU], *game.submitted[YOU]}
    finished = {c for r in game.rounds for c in r.table}
    assert set(map(int, state["clues"])) == mine | finished
    assert set(map(int, state["texts"])) == mine | finished | set(game.table)
    for card in range(state["cards"]):
        seen = card in mine | finished | set(game.table)
        assert (games.picture(client.cookies["dixit"], str(card), 1) is not None) == seen


def play_through(client: TestClient, games: Tables, seed: int):
    """A whole game; yields after each move."""
    draws = rng("visitor", seed)
    state = client.post("/api/new", json={"goal": 10}).json()
    assert state["game"]["storyteller"] != YOU and state["game"]["phase"] == "submit"  # newcomers guess first
    while state["game"]["phase"] != "over":
        check_nothing_is_hidden(client, games, state)
        assert client.get("/api/state").json() == state
        if state["pending"]:
            state = client.post("/api/next", json={}).json()
        else:
            answer = client.post("/api/move", json={"round": len(state["game"]["rounds"]), **my_move(state, draws)})
            assert answer.status_code == 200, answer.text
            state = answer.json()
        yield state


def test_two_whole_games_at_once(games, tmp_path):
    clients = [visit(games, tmp_path), visit(games, tmp_path)]
    assert clients[0].cookies["dixit"] != clients[1].cookies["dixit"]
    playing = [play_through(client, games, i) for i, client in enumerate(clients)]
    last: list[dict] = [next(playing[0]), next(playing[1])]
    for card, status in ((last[0]["game"]["hand"][0], 200), (next(iter(games.sessions.values())).game.deck[0], 404)):
        assert clients[0].get(f"/picture/{last[0]['key']}/{card}/1.png").status_code == status
    going = {0, 1}
    while going:
        for i in sorted(going):
            try:
                last[i] = next(playing[i])
            except StopIteration:
                going.discard(i)
    assert last[0]["game"]["rounds"] != last[1]["game"]["rounds"]
    for state in last:
        rounds = state["game"]["rounds"]
        assert state["game"]["winners"] and max(state["game"]["scores"]) >= 10
        assert [sum(r["points"][p] for r in rounds) for p in range(4)] == state["game"]["scores"]
        assert [r["storyteller"] for r in rounds] == [i % 4 for i in range(len(rounds))]
        assert all((r["clue"] == "a red ring") == (r["storyteller"] == YOU) for r in rounds)


def test_a_restart_loses_nothing(games, loaded, tmp_path):
    client = visit(games, tmp_path)
    game = play_through(client, games, 0)
    for _ in range(4):
        before = next(game)
    session_id = client.cookies["dixit"]
    again = visit(Tables(*loaded, games.folder), tmp_path, session_id)
    assert again.get("/api/state").json() == before and before["game"]["rounds"]
    kept = games.folder / f"{session_id}.json"
    for damage in (kept.read_text()[:40], "[]", '{"deck": 1}', kept.read_text().replace(before["key"], "other cards")):
        kept.write_text(damage)
        fresh = visit(Tables(*loaded, games.folder), tmp_path, session_id)
        assert fresh.get("/api/state").json()["game"] is None  # no game, and no error: one can be started
        assert "no game yet" in fresh.post("/api/next", json={}).json()["error"]
    assert fresh.post("/api/new", json={"goal": 20}).json()["game"]["goal"] == 20


def test_only_so_many_games_stay_in_memory(games, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_OPEN_SESSIONS", 2)
    clients = [visit(games, tmp_path) for _ in range(4)]
    states = [client.post("/api/new", json={"goal": 10}).json() for client in clients]
    assert [client.get("/api/state").json() for client in clients] == states and len(games.sessions) == 2


@pytest.mark.parametrize(("path", "sent", "words"), [
    ("new", {"goal": 11}, "10, 20, 30 points"), ("new", {}, "10, 20, 30 points"),
    ("move", {"round": 0}, "choose a card"), ("move", {"round": 0, "cards": "all"}, "choose a card"),
    ("move", {"round": 0, "cards": [True]}, "choose a card"), ("move", {"round": 0, "cards": [1e9]}, "choose a card"),
    ("move", {"round": 0, "cards": [10**9]}, "has not got card"), ("move", {"round": 0, "cards": []}, "choose a card"),
    ("move", {"round": 1, "cards": [0]}, "gone on meanwhile"), ("move", {"cards": [0]}, "gone on meanwhile"),
    ("explain", {"round": 0}, "not finished"), ("explain", {"round": -1}, "not finished"),
    ("explain", {"round": "0"}, "not finished"), ("explain", {"clue": "red", "card": -7}, "of your hand"),
    ("explain", {"clue": " ", "card": 0}, "at least one word"), ("explain", {"clue": "x" * 121}, "at most 120 letters"),
    ("move", [], "no request of this page"), ("move", "{", "no request of this page"),
    ("move", "\xff" * 9000, "over 0.01 MB"),
])
def test_bad_requests_are_told_why_and_change_nothing(games, tmp_path, path, sent, words):
    client = visit(games, tmp_path)
    before = client.post("/api/new", json={"goal": 10}).json()
    body = {"content": sent.encode()} if isinstance(sent, str) else {"json": sent}
    answer = client.post(f"/api/{path}", **body)
    assert answer.status_code == 400 and words in answer.json()["error"] and "\n" not in answer.text
    assert client.get("/api/state").json() == before


def test_the_storyteller_needs_a_clue_and_it_is_cleaned(games, tmp_path):
    client = visit(games, tmp_path)
    state = client.post("/api/new", json={"goal": 30}).json()
    draws = rng("to tell", 0)
    while state["game"]["phase"] != "tell" or state["pending"]:
        request = {} if state["pending"] else {"round": len(state["game"]["rounds"]), **my_move(state, draws)}
        state = client.post("/api/next" if state["pending"] else "/api/move", json=request).json()
    request = {"round": len(state["game"]["rounds"]), "card": state["game"]["hand"][0]}
    for clue, words in ((" \n", "at least one word"), ("x" * 121, "120 letters"), (None, "at least one word")):
        assert words in client.post("/api/move", json={**request, "clue": clue}).json()["error"]
    hint = client.post("/api/explain", json={"card": request["card"], "clue": "red ring"}).json()
    assert hint["cards"][0] == request["card"] and sorted(hint["cards"]) == sorted(state["game"]["hand"])
    state = client.post("/api/move", json={**request, "clue": " <b>a\n dream</b> "}).json()
    assert state["game"]["rounds"][-1]["clue"] == "<b>a dream</b>"  # as text: the page never reads it as HTML


def test_cookies_and_hosts_of_others_are_refused(games, tmp_path):
    app = web.make_app(tmp_path, games, ["127.0.0.1"])
    for cookie in ("", "dixit=../../../etc/passwd", "dixit=short", "dixit=" + "é" * 22):
        client = TestClient(app, base_url=BASE, headers={"cookie": cookie.encode()} if cookie else None)
        assert "cookie" in client.get("/api/state").json()["error"]
        given = client.get("/").headers["set-cookie"]
        assert re.match(r"dixit=[\w-]{22};", given) and "HttpOnly" in given and "SameSite=lax" in given
    assert TestClient(app, base_url="http://elsewhere.example").get("/").status_code == 400
    client = visit(games, tmp_path)
    for path in ("0/0.png", "own/0.png", "-1/99.png", "-9/0.png", "..%2f/0.png", "٣/0.png", "1e3/0.png"):
        assert client.get(f"/picture/k/{path}").status_code == 404, path
    for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/nothing"):
        assert client.get(path).status_code == 404


def test_the_page_is_whole_and_runs_no_scripts_of_others(games, tmp_path):
    client = visit(games, tmp_path)
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script>|<style>| on\w+=|style=", page.text)
    texts = [page.text, *(client.get(f"/static/dixit.{kind}").text for kind in ("css", "js"))]
    for text in texts:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", texts[2])
    ids = set(re.findall(r'id="([\w-]+)"', page.text))
    assert set(re.findall(r"\$\('([\w-]+)'\)", texts[2])) <= ids


def png_bytes(size: tuple[int, int], colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def huge() -> bytes:
    """100 megapixels in a small file."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 200_000
    return buffer.getvalue()


def test_bad_uploads_are_told_why_and_the_session_goes_on(games, tmp_path, huge):
    client = visit(games, tmp_path)
    before = client.post("/api/new", json={"goal": 10}).json()
    for content, words in ((b"just some text\n" * 99, "your file is not a readable image"), (b"", "the file is empty"),
                           (b"%PDF-1.7 ...", "not one of PNG"), (huge, "over 50 million pixels"),
                           (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not one of PNG"),
                           (png_bytes((50, 50))[:90], "not a readable image"), (bytes(10_000_001), "over 10 MB")):
        answer = client.post("/api/image", content=content)
        assert answer.status_code == 400 and words in answer.json()["error"], answer.text
        assert client.get("/api/image").json() == {"captions": {}}
    assert client.get("/api/state").json() == before
    found = client.post("/api/image", content=png_bytes((300, 120), "lime")).json()
    assert found["captions"].keys() == {"base", "trained"} and found["others"] == tables.DISTRACTORS
    for speaker in found["captions"]:
        assert len(found["captions"][speaker]) == 3 and all(0 <= p <= 1 for _, p in found["captions"][speaker])
        for seen in found["responses"][speaker]:
            assert sum(seen["belief"]) == pytest.approx(1) and len(seen["belief"]) == 1 + tables.DISTRACTORS
    assert client.get("/api/image").json() == found  # a reload shows it again
    colour, grey = (Image.open(io.BytesIO(client.get(f"/picture/k/own/{look}.png").content)) for look in (1, 2))
    assert colour.size == (32, 32) and colour.getpixel((16, 16)) == (0, 255, 0)
    assert len(set(grey.getpixel((16, 16)))) == 1
    assert visit(games, tmp_path).get("/api/image").json() == {"captions": {}}  # nobody else sees it


def test_a_finished_round_is_explained_by_leaving_words_out(games, tmp_path):
    client = visit(games, tmp_path)
    game = play_through(client, games, 3)
    while not (state := next(game))["pending"]:
        pass
    done = state["game"]["rounds"][0]
    found = client.post("/api/explain", json={"round": 0}).json()
    assert found["cards"][0] == done["table"][done["owners"].index(0)] and found["clue"] == done["clue"]
    for listener, seen in zip(games.deck.listeners, found["responses"], strict=True):
        cards = torch.tensor(found["cards"])[None]
        assert seen["belief"] == pytest.approx(listener.score([done["clue"]], cards)[0].softmax(0).tolist(), abs=1e-5)
        words = done["clue"].split()
        assert [word for word, _ in seen["words"]] == words
        rest = " ".join(words[1:]) or "picture"
        logits = listener.score([done["clue"], rest], cards.expand(2, -1))
        whole, without = reference_game.target_logp(logits[None])[0].tolist()
        assert seen["words"][0][1] == pytest.approx(whole - without, abs=1e-4)


def test_captions_come_with_their_probability(loaded):
    run, deck = loaded
    images = deck.images[:3]
    captions = caption_images(run, images, samples=2, seed=4)
    patches = run.eyes.patches(images, "colour")
    assert [row[0][0] for row in captions["trained"]] == [row[0] for row in run.speaker.caption(patches)]
    with torch.no_grad():
        prefix = run.speaker.trained(patches)
    tokens, mask, _ = run.speaker.sample(prefix)
    expected = run.speaker.logprobs(prefix, tokens, mask).sum(1).exp().tolist()
    assert [row[0][1] for row in captions["trained"]] == pytest.approx(expected, rel=1e-3)
    assert all(len(row) == 3 for rows in captions.values() for row in rows)
    assert caption_images(run, images, speakers=["trained"])["trained"][0][0][0] == captions["trained"][0][0][0]


def test_listeners_of_one_name_are_told_apart():
    made = [ListenerConfig("colour"), ListenerConfig("grey"), ListenerConfig("colour", clip="models/other")]
    assert listener_labels(made) == ["colour, lite0", "grey", "colour, other"]


def test_a_silent_speaker_makes_a_legal_storyteller(loaded):
    view = {"phase": "tell", "player": 0, "rounds": [], "hand": [1]}
    listener = loaded[1].listeners[0]
    assert Agent(["", "  "], listener, 0).move(view) == (1, "...")
    assert listener_response(listener, "", torch.arange(4))["words"] == []


def test_a_practice_table_needs_nothing_trained(home, tmp_path):
    deck = tables.practice_deck()
    assert sum(a != b for a, b in zip(deck.texts, deck.clues, strict=True)) > 60  # the alt text gives no clue away
    games = Tables(None, deck, tmp_path / "web")
    client = visit(games, tmp_path)
    for state in play_through(client, games, 1):
        assert state["run"] == ""
    assert state["game"]["winners"]
    seen = client.post("/api/explain", json={"round": 0}).json()["responses"]
    assert len(seen) == 3 and all(sum(one["belief"]) == pytest.approx(1, abs=1e-5) for one in seen)
    answer = client.post("/api/image", content=png_bytes((50, 50)))
    assert "only a trained speaker" in answer.json()["error"] and client.get("/api/image").json() == {"captions": {}}


def test_the_newest_game_is_played(game_run, caption_run, tmp_path, home, capsys):
    assert web.newest_game_run(tmp_path / "nowhere") is None
    for i, (name, source) in enumerate({"old": game_run, "pairs/new": game_run, "words": caption_run}.items()):
        shutil.copytree(source, tmp_path / name)
        os.utime(tmp_path / name / "log.jsonl", (i, i))
    shutil.copytree(game_run, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "checkpoints")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "log.jsonl").touch()
    assert web.newest_game_run(tmp_path) == tmp_path / "pairs/new"
    assert web.default_cards() == "test" and "python -m dixit.data.assets stamps" in capsys.readouterr().err


def test_decks_that_cannot_be_played(loaded, home, tmp_path, folder_of_cards):
    run, deck = loaded
    assert len(deck.clues) == len(deck.images) == 70 - tables.DISTRACTORS and deck.hand == 6
    assert len(load_deck(run, "test").clues) == 24 - tables.DISTRACTORS  # its own test split has 24 images
    for path in sorted(folder_of_cards.glob("card 1*.png"))[:8]:
        shutil.copy(path, tmp_path)
    with pytest.raises(DixitError, match="bring more images"):
        load_deck(run, f"folder:{tmp_path}")
    with pytest.raises(DixitError, match="choose of"):
        load_deck(run, "stanps")


# --- training, as it goes ---


def test_a_log_is_read_as_it_grows(tmp_path, caption_run):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(caption_run / "config.yaml", run)
    log = run / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.5, "text": "a <b>", "samples": ["x", "y"], "odd": {"a": 1}, "bad": NaN}\n'
                   'damaged\n[]\n{"loss": 1}\n{"step": 2, "lo')
    part = web.read_log(run, "", 0)
    assert part["rows"] == [{"step": 1, "loss": 2.5, "text": "a <b>", "samples": ["x", "y"]}]
    assert part["restarted"] and part["steps"] == 4 and not part["more"]
    with log.open("a") as file:
        file.write('ss": 2}\n')
    part = web.read_log(run, part["file_id"], part["offset"])
    assert part["rows"] == [{"step": 2, "loss": 2}] and not part["restarted"]
    assert web.read_log(run, part["file_id"], part["offset"])["rows"] == []
    log.write_text('{"step": 1, "loss": 9}\n')  # cut: a shorter file
    again = web.read_log(run, part["file_id"], part["offset"])
    assert again["restarted"] and again["rows"] == [{"step": 1, "loss": 9}]
    (tmp_path / "new").write_text("".join(f'{{"step": {i}}}\n' for i in range(99)))
    (tmp_path / "new").replace(log)  # begun anew: another file in its place
    assert len(web.read_log(run, again["file_id"], again["offset"])["rows"]) == 99


def test_a_long_log_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "LOG_BYTES", 100)
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(50)))
    rows, part = [], {"file_id": "", "offset": 0, "more": True}
    while part["more"]:
        part = web.read_log(tmp_path, part["file_id"], part["offset"])
        rows += part["rows"]
    assert [row["step"] for row in rows] == list(range(50))


def test_runs_are_followed_without_a_model(game_run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(game_run / "log.jsonl", tmp_path / name)
    shutil.copy(game_run / "config.yaml", tmp_path / "two")
    (tmp_path / "secret.txt").write_text("secret")
    client = TestClient(web.make_app(tmp_path / "two", None, ["127.0.0.1"]), base_url=BASE)
    assert client.get("/").url.path == "/runs"  # there is nothing else
    found = client.get("/api/runs").json()
    assert sorted(found["runs"]) == ["one", "two"] and found["this"] == "two"
    part = client.get("/api/log", params={"run": "two"}).json()
    assert part["weights"] == {"colour": 1, "grey": -1} and part["rows"][-1]["step"] == 4
    assert client.get("/api/log", params={"run": "one", "offset": "x", "file_id": "?"}).json()["steps"] == 0
    shutil.copytree(game_run / "said", tmp_path / "two" / "said")
    (tmp_path / "two" / "said" / "step_000002.parquet").write_bytes(b"cut off")
    table = client.get("/api/said", params={"run": "two"}).json()
    assert (table["steps"], table["step"], len(table["images"]), len(table["rows"])) == ([2, 4], 4, 16, 32)
    assert {"caption", "belief/grey", "pick/grey", "reward", "advantage", "number"} <= table["rows"][0].keys()
    assert base64.b64decode(table["images"][str(table["rows"][0]["number"])]).startswith(b"\x89PNG")
    damaged = client.get("/api/said", params={"run": "two", "step": "2"})
    assert damaged.status_code == 400 and "is damaged" in damaged.json()["error"]
    for empty in ({"run": "one"}, {"run": "two", "step": "3"}):
        assert client.get("/api/said", params=empty).json()["rows"] == []
    for name in ("..", "../two", "secret.txt", "", "/etc"):
        assert client.get("/api/log", params={"run": name}).status_code == 404
        assert client.get("/api/said", params={"run": name}).status_code == 404
    assert client.get("/api/state").status_code == client.get("/picture/k/0/0.png").status_code == 404


# --- commands ---


def test_commands_that_cannot_work(command, game_run, tmp_path):
    for words, error in (((tmp_path,), "is not a run"), ((game_run, "--data", "stanps"), "choose of"),
                         ((game_run, "--host", "my machine"), "is no address")):
        done = command("-m", "dixit.play.web", *words, "--port", "0")
        assert done.returncode == 2 and error in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_taken_port_and_an_open_host(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(DixitError, match="choose another --port"):
            web.serve(None, "127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(web.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    web.serve(None, "127.0.0.1", 0)
    assert capsys.readouterr().err == ""
    web.serve(None, "0.0.0.0", 0)  # noqa: S104
    captions = capsys.readouterr()
    assert captions.err.count("\n") == 1 and "no password" in captions.err and "open http://0.0.0.0:" in captions.out
    assert web.is_local("localhost") and web.is_local("::1") and not web.is_local("10.0.0.1")


def test_the_terminal_demo(command, game_run, folder_of_cards, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    request = ["3", f"'{folder_of_cards}'", "69", "70", "l 1 4",
             str(folder_of_cards / "card 2.png").replace(" ", "\\ "),
             str(tmp_path / "notes.txt"), "l 9", "h", "q"]
    done = command("scripts/demo.py", game_run, "--images", "blocks", input="\n".join(request))
    assert done.returncode == 0, done.stderr
    rounds = re.findall(r"base speaker: .*\n(?:  also .*\n)+", done.stdout)
    assert len(rounds) == done.stdout.count("trained speaker: ") == 4 and done.stdout.count("words: ") == 4 * 4
    assert len(set(rounds)) == 3 and rounds[1] == rounds[2]  # other listeners are asked about the same captions
    assert "70 images of" in done.stdout and "* 4 grey, other_eye: sees grey" in done.stdout
    for error in ("only 70 images", "notes.txt is not a readable image", "listeners from 1 to 4"):
        assert f"error: {error}" in done.stdout or error in done.stdout
    assert "\x1b[38;2;" in done.stdout
    again = command("scripts/demo.py", game_run, "0", "--heldout")
    assert again.returncode == 0 and "other_eye picks" in again.stdout and "\x1b" not in again.stdout


# --- images in a terminal ---


def picture() -> Image.Image:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 0, 255), (0, 8, 16, 16))
    return image


def test_the_way_fits_the_terminal():
    assert detect_method({"TERM": "xterm-kitty"}, True) == "kitty"
    assert detect_method({"TERM": "foot-extra"}, True) == "sixel"
    assert detect_method({"COLORTERM": "truecolor", "TERM": "xterm"}, True) == "blocks"
    assert detect_method({"TERM": "xterm"}, True) == detect_method({"TERM": "xterm-kitty"}, False) == "files"


def test_half_blocks_hold_two_pixels_each():
    lines = render(picture(), "blocks", 16).split("\n")
    cells = [re.findall(r"38;2;(\d+);(\d+);(\d+)m\x1b\[48;2;(\d+);(\d+);(\d+)m▀", line) for line in lines]
    assert len(lines) == 8 and all(len(row) == 16 for row in cells)
    assert cells[0][0] == ("255", "0", "0") * 2 and cells[-1][-1] == ("0", "0", "255") * 2


def test_kitty_gets_a_png_in_parts():
    noise = Image.fromarray(rng("noise", 0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", render(noise, "kitty"))
    assert len(parts) > 2 and all(len(data) <= 4096 for _, data in parts)
    assert [keys.split("m=")[1] for keys, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
    sent = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts))))
    assert sent.tobytes() == noise.tobytes()


def read_sixel(text: str) -> np.ndarray:
    """The picture in a sixel sequence."""
    body = re.fullmatch(r"\x1bPq\"1;1;(\d+);(\d+)(.*)\x1b\\", text, re.DOTALL)
    assert body
    seen = np.zeros((int(body[2]) + 6, int(body[1]), 3))
    palette, colour, x, y = {}, 0, 0, 0
    for token in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([?-~])|(\$)|(-)", body[3]):
        if token[1]:
            palette[int(token[1])] = [int(token[k]) / 100 * 255 for k in (2, 3, 4)]
        elif token[5]:
            colour = int(token[5])
        elif token[9] or token[10]:
            x, y = 0, y + (6 if token[10] else 0)
        else:
            for _ in range(int(token[6] or 1)):
                for bit in range(6):
                    if ord(token[7] or token[8]) - 63 >> bit & 1:
                        seen[y + bit, x] = palette[colour]
                x += 1
    return seen[:int(body[2])]


def test_sixels_can_be_read_back():
    seen = read_sixel(render(picture(), "sixel", 5))
    expected = np.asarray(picture().resize((40, 40)), dtype=float)
    assert seen.shape == (40, 40, 3) and np.abs(seen - expected).mean() < 3
