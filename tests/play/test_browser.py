"""The web page in a real browser: headless Chromium plays whole games against the command's own server.

Skipped with a reason where Chromium or playwright is missing. DIXIT_SCREENSHOTS=FOLDER keeps pictures; with
DIXIT_WEB_RUN=RUN and DIXIT_WEB_DATA=stamps as well, they are of a trained run and its cards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dixit.training import said

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; as root on Debian scripts/test installs it")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESK, PHONE = {"width": 1200, "height": 980}, {"width": 360, "height": 740}
EVIL = "<img src=x onerror=alert(1)>"


class Server:
    """`python -m dixit.play.web WORDS...`, which may be stopped and started again."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str]):
        self.words, self.folder, self.environment, self.port = words, folder, environment, 0

    def start(self) -> None:
        command = [sys.executable, "-m", "dixit.play.web", *self.words, "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout and self.process.stderr
        noise: list[str] = []
        threading.Thread(target=noise.extend, args=(self.process.stderr,), daemon=True).start()
        line = self.process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), "".join(noise)
        self.url = line.split()[1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(240)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tiny, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("runs")
    if os.environ.get("DIXIT_WEB_RUN"):
        source, environment = Path(os.environ["DIXIT_WEB_RUN"]), dict(os.environ)
    else:
        source, environment = request.getfixturevalue("game_run"), tiny.environment
    cards = os.environ.get("DIXIT_WEB_DATA") or f"folder:{request.getfixturevalue('folder_of_cards')}"
    run = shutil.copytree(source.resolve(), folder / source.name, ignore=shutil.ignore_patterns("web"))
    made = Server([str(run), "--data", cards], ROOT, environment)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium, server):
    """Opens pages, each a visitor of its own. None may log an error, open a dialog, or ask another host for anything.
    """
    contexts, wrong = [], []

    def visit(path: str = "/", size: dict | None = None):
        context = chromium.new_context(viewport=size or DESK)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" and not re.search(
            "400 .Bad Request|CONNECTION_REFUSED", message.text) else None)  # answers that the page itself shows
        page.on("request", lambda asked: wrong.append(asked.url)
                if not asked.url.startswith((server.url, "data:", "blob:")) else None)
        page.goto(server.url + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def keep(page, name: str) -> None:
    """A picture of what the page shows, if they are asked for."""
    if os.environ.get("DIXIT_SCREENSHOTS"):
        page.wait_for_timeout(300)
        page.screenshot(path=Path(os.environ["DIXIT_SCREENSHOTS"]) / f"{name}.png")


def listener_count(page) -> int:
    """How many listeners the page's state names."""
    return page.evaluate("fetch('/api/state').then(answer => answer.json()).then(state => state.listeners.length)")


def until(page, expression: str, argument: object = None) -> None:
    """Wait until something is true on the page. (The page's own policy forbids playwright's wait_for_function.)"""
    for _ in range(1200):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within a minute: {expression} {argument or ''}")


def focused(page, name: str) -> None:
    """Wait until a part of the page has the focus."""
    until(page, "name => document.activeElement.id === name", name)


def settled(page) -> None:
    """Wait until the server has answered and all pictures are there."""
    until(page, "document.body.ariaBusy !== 'true' && [...document.images].every(image => image.complete)")


def phase(page) -> str:
    """What is asked of the visitor, as the page's own parts say."""
    settled(page)
    if page.locator("#start").is_visible():
        return "over" if page.locator("#players").is_visible() else "start"
    if page.locator("#next").is_visible():
        return "result"
    if page.locator("#telling").is_visible():
        return "tell"
    return "vote" if page.locator("#table").is_visible() else "submit"


def begin(page) -> None:
    page.locator("#start .go").click()
    page.locator("#hand .card").first.wait_for()


def one_move(page, clue: str = "red") -> str:
    """Do what is asked, with the mouse; returns what it was."""
    asked = phase(page)
    before = page.locator("#task").inner_text()
    if asked == "result":
        page.locator("#next").click()
    elif asked in ("tell", "submit"):
        page.locator("#hand .card").nth(1).click()
        if asked == "tell":
            page.locator("#words").fill(clue)
        page.locator("#confirm").click()
    elif asked == "vote":
        for card in page.locator("#table .card").all():
            card.click()
            if page.locator("#confirm").is_enabled():
                break
        page.locator("#confirm").click()
    if asked not in ("over", "start"):
        until(page, "before => document.getElementById('task').innerText !== before", before)
    return asked


def points(page) -> list[int]:
    return [int(text.split()[0]) for text in page.locator("#players b").all_inner_texts()]


def test_a_whole_game_against_three_agents(visitor):
    page = visitor()
    assert phase(page) == "start" and "storyteller" in page.locator("#hint").inner_text()
    keep(page, "start")
    begin(page)
    assert page.locator("#hand .card").count() == 6 and points(page) == [0, 0, 0, 0]
    page.locator("#hand .card").first.click()
    settled(page)
    looks = page.locator("#lens-looks img")
    eyes = 1 if os.environ.get("DIXIT_WEB_RUN") else 2  # at least; those of a run of pictures may all see in colour
    assert looks.count() >= eyes and "The speaker’s caption" in page.locator("#lens-caption").inner_text()
    keep(page, "submit")
    moves, last = [], [0, 0, 0, 0]
    while phase(page) != "over":
        moves.append(one_move(page, EVIL))
        if moves[-1] == "vote" or (moves[-1] == "tell" and phase(page) == "result"):
            page.locator("#why .mind").last.wait_for()
            assert page.locator("#why .mind").count() == listener_count(page)
            assert page.locator("#why .word").count() >= 4
            assert page.locator("#table .card.correct").count() == 1
            assert all(now >= then for now, then in zip(points(page), last, strict=True))
            last = points(page)
            if moves[-1] == "tell":
                assert page.locator("#clue").inner_text() == EVIL  # as text; the visitor fixture sees no dialog
            settled(page)
            keep(page, f"result_{len(moves)}")
        elif moves[-1] == "submit":
            assert page.locator("#table .card").count() == 4
            own = page.locator("#table .card", has_text="yours")
            own.click()
            assert page.locator("#confirm").is_disabled()  # nobody votes for a card of their own
            keep(page, f"vote_{len(moves)}")
    assert "won" in page.locator("#task").inner_text() and max(points(page)) >= 10
    assert {"submit", "vote", "tell", "result"} <= set(moves)
    keep(page, "over")
    begin(page)
    until(page, "document.querySelector('#players b')?.innerText === '0'")
    assert phase(page) == "submit"


def test_by_keyboard_alone(visitor):
    page = visitor()
    settled(page)
    keys = page.keyboard
    page.bring_to_front()
    until(page, "document.hasFocus()")
    for _ in range(12):  # Tab comes to the button, and shows where it is
        before = page.evaluate_handle("document.activeElement")
        keys.press("Tab")
        until(page, "before => document.activeElement !== before", before)
        until(page, "getComputedStyle(document.activeElement).outlineStyle !== 'none'")
        if page.evaluate("document.activeElement.textContent") == "Start a game":
            break
    keys.press("Enter")
    page.locator("#hand .card").first.wait_for()
    told = 0
    while told < 2:
        asked = phase(page)
        if asked == "over":
            break
        before = page.locator("#task").inner_text()
        if asked == "result":
            if told:
                break
            while page.evaluate("document.activeElement.id") != "next":
                keys.press("Tab")
            keys.press("Enter")
        elif asked == "tell":
            keys.press("2")
            focused(page, "words")
            keys.type("a red 2")  # digits in a clue choose no card
            assert page.locator("#words").input_value() == "a red 2"
            assert page.locator("#hand .card").nth(1).get_attribute("aria-pressed") == "true"
            keys.press("Enter")
            told += 1
        else:
            for number in "1234":
                page.locator("#task").focus()
                keys.press(number)
                if page.locator("#confirm").is_enabled():
                    break
            focused(page, "confirm")
            keys.press("Enter")
        until(page, "before => document.getElementById('task').innerText !== before", before)
        focused(page, "task")  # a screen reader announces what is next
    assert told == 1


def test_on_a_phone_nothing_is_cut_off_and_all_has_names(visitor):
    page = visitor(size=PHONE)
    seen = set()
    while len(seen) < 5:
        asked = phase(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], asked
        assert page.evaluate("[...document.images].filter(image => !image.alt.trim()).length") == 0
        parts = page.locator("button:visible, select:visible, input:not([type=checkbox]):visible").all()
        assert len(parts) >= 2 and all(part.bounding_box()["height"] >= 32 for part in parts)
        for part in parts:
            assert part.inner_text().strip() or part.evaluate("e => (e.labels || []).length || e.querySelector('img')")
        if asked not in seen:
            keep(page, f"phone_{asked}")
        seen.add(asked)
        if asked == "over":
            break
        if asked == "start":
            begin(page)
        else:
            one_move(page)
    assert {"start", "submit", "vote", "result", "tell"} <= seen


def test_uploads_good_and_bad(visitor, tmp_path):
    page = visitor()
    begin(page)
    before = page.locator("#clue").inner_text()
    status = page.locator("#own-status")
    (tmp_path / "notes.txt").write_text("no image at all\n" * 20)
    (tmp_path / "paper.png").write_bytes(b"%PDF-1.7\n%%EOF")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(bytes(10_000_001))
    Image.new("RGB", (90, 40), "orange").save(tmp_path / "good.jpg")
    for name, words in (("notes.txt", "not a readable image"), ("paper.png", "not a readable image"),
                        ("empty.png", "is empty"), ("huge.png", "over 50 million pixels"),
                        ("heavy.png", "over 10 MB")):
        page.locator("#file").set_input_files(tmp_path / name)
        until(page, "words => document.getElementById('own-status').innerText.includes(words)", words)
        assert status.inner_text().startswith("That did not work: ") and page.locator("#own-body img").count() == 0
        assert page.locator("#clue").inner_text() == before
    keep(page, "bad_upload")
    page.locator("#file").set_input_files(tmp_path / "good.jpg")
    page.locator("#own-body .mind").first.wait_for()
    assert status.inner_text() == "Done." and page.locator("#own-body details").count() == 2
    assert page.locator("#own-body details[open] .mind").count() == listener_count(page)
    settled(page)
    page.locator("#own").scroll_into_view_if_needed()
    keep(page, "own_image")
    page.reload()
    page.locator("#own-body .mind").first.wait_for()  # a reload shows it again
    # Dropped on the page, a text file is refused and an image taken, and the browser does not leave the page.
    for kind, name, words in (("text/plain", "a.txt", "not a readable image"), ("image/png", "a.png", "Done.")):
        page.evaluate("""async ([kind, name]) => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 30, height: 20});
            const blob = kind === 'text/plain' ? new Blob(['text'])
                : await new Promise(done => canvas.toBlob(done, kind));
            const data = new DataTransfer();
            data.items.add(new File([blob], name, {type: kind}));
            document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""", [kind, name])
        until(page, "words => document.getElementById('own-status').innerText.includes(words)", words)
    assert one_move(page) == "submit"  # the game goes on


def test_two_visitors_a_reload_and_a_restart(visitor, server):
    one, other = visitor(), visitor()
    begin(one)
    begin(other)
    assert [one_move(one), one_move(other), one_move(one)] == ["submit", "submit", "vote"]
    assert (phase(one), phase(other)) == ("result", "vote")

    def shown(page) -> list:
        settled(page)
        return [page.locator("#task").inner_text(), page.locator("#clue").inner_text(), points(page),
                page.locator(".card img").evaluate_all("images => images.map(image => image.src)")]

    before = shown(one), shown(other)
    assert before[0] != before[1]
    one.reload()
    one.locator("#hand .card").first.wait_for()
    assert shown(one) == before[0]
    server.stop()
    one.locator("#next").click()
    until(one, "document.getElementById('error').innerText.includes('does not answer')")
    server.start()
    for page, earlier in ((one, before[0]), (other, before[1])):
        page.reload()
        page.locator("#hand .card").first.wait_for()
        assert shown(page) == earlier
    assert one_move(other) == "vote" and one_move(one) == "result"


def test_curves_grow_while_a_run_trains(visitor, server):
    run = Path(server.words[0])
    live = run.parent / "live"
    live.mkdir()
    shutil.copy(run / "config.yaml", live)
    log = live / "log.jsonl"

    def write(steps: range) -> None:
        with log.open("a") as file:
            for step in steps:
                row = {"step": step, "reward": step / 50, "loss": 1 / step, "accuracy/colour": .5 + step / 200,
                       "accuracy/grey": .5, "length": 9, "grad_norm": 1.5}
                seen = {"eval/captions": ["A ring.", f"{step} {EVIL}"], "eval/commonest_caption": 1 / step,
                        "eval/kernel_distance": step / 80, "eval/prefix_dimensions": 9, "eval/gap_constant": 0.1}
                file.write(json.dumps(row | (seen if step % 10 == 0 else {})) + "\n")

    write(range(1, 41))
    for step in (30, 40):
        rows = said.read(max(said.steps(run).items())[1])
        said.write(live, step, [{**row, "caption": f"{step} {EVIL}", "step": step} for row in rows])
    page = visitor("/runs")
    page.locator("#charts svg").first.wait_for()
    page.locator("#run").select_option("live")
    until(page, "document.getElementById('progress').innerText.includes('live: step 40 ')")
    titles = page.locator("#charts h3").all_inner_texts()
    assert titles[:2] == ["Reward", "Gap between the listeners"] and "Accuracy of each listener" in titles
    assert {"Constant solution", "Kernel", "Geometry"} <= set(titles)
    spoken = page.locator("#texts tr").first
    assert spoken.locator("th").inner_text() == "step 40"
    assert spoken.locator("td").all_inner_texts() == ["A ring.", f"40 {EVIL}"]
    assert spoken.locator("td.soft").all_inner_texts() == ["A ring."]  # nothing new
    seen = page.locator("#said-rounds section").first
    until(page, "document.querySelector('#said-rounds td')?.innerText.startsWith('40 ')")
    assert seen.locator("td").first.inner_text() == f"40 {EVIL}" and seen.locator("meter").count() >= 2
    until(page, "document.querySelector('#said-rounds img')?.naturalWidth > 0")
    page.locator("#said-step").select_option("30")
    until(page, "document.querySelector('#said-rounds td')?.innerText.startsWith('30 ')")
    before = page.locator("#charts polyline").last.get_attribute("points")
    write(range(41, 61))
    until(page, "document.getElementById('progress').innerText.includes('live: step 60 ')")  # by itself
    until(page, "before => [...document.querySelectorAll('#charts polyline')].at(-1).getAttribute('points') !== before",
          before)
    assert page.locator("#texts th").first.inner_text() == "step 60"
    label = page.locator("#charts svg").first.get_attribute("aria-label")
    assert "up to step 60" in label and "reward 1.2" in label
    page.locator("summary").click()
    assert "grad_norm" in page.locator("#others h3").all_inner_texts()
    keep(page, "runs")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_newcomer_with_nothing_trained_plays_at_once(chromium, tiny, tmp_path):
    server = Server([], tmp_path, tiny.environment)  # an empty folder: no runs
    server.start()
    page = chromium.new_page(viewport=DESK)
    page.goto(server.url)
    settled(page)
    assert page.locator("#practice").is_visible() and "scripts/quickstart" in page.locator("#practice").inner_text()
    assert not page.locator("#own").is_visible() and not page.locator("#lens").is_visible()
    begin(page)
    assert [one_move(page), one_move(page)] == ["submit", "vote"]
    page.locator("#why .mind").last.wait_for()
    settled(page)
    keep(page, "practice")
    page.close()
    server.stop()
