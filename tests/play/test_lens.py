"""What a listener with a chain of steps sees is shown in the browser, the demo and the report."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dixit.config import ListenerConfig
from dixit.config_perception import PerceptionStep
from dixit.data.images import load, pixels
from dixit.models.perception import perceive
from dixit.play import demo, web
from dixit.play.explain import describe_listener
from dixit.play.tables import Tables, load_deck
from dixit.training.runs import load_run
from eval import commands, report

CHAIN = (PerceptionStep(rotate_hue=120.0), PerceptionStep(blur=1.5))


@pytest.fixture(scope="module")
def run_folder(tiny, caption_run, train, tmp_path_factory):
    """A finished run whose second listener sees through a chain."""
    out = tmp_path_factory.mktemp("chain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        recipe = "[{rotate_hue: 120}, {blur: 1.5}]"
        train(tiny.game_config, out, f"listeners.1.perception={recipe}", f"heldout.1.perception={recipe}",
              "train.steps=2", f"speaker.init={caption_run}")
        yield out


def test_the_browser_shows_the_cards_as_a_chain_sees_them(run_folder, tmp_path):
    run = load_run(run_folder)
    assert run.config.listeners[1].perception == CHAIN  # as saved with the run
    games = Tables(run, load_deck(run, "test"), tmp_path / "web")
    client = TestClient(web.make_app(tmp_path, games, ["127.0.0.1"]), base_url="http://127.0.0.1")
    client.get("/")
    state = client.post("/api/new", json={"goal": 10}).json()
    assert [who["perception"] for who in state["listeners"]] == ["colour", "rotate_hue 120 + blur 1.5"] * 2
    card = state["game"]["hand"][0]
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/picture/k/{card}/2.png").content)))
    wanted = perceive(games.deck.images[card][None].float() / 255, CHAIN)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - wanted).max() <= 0.501


def test_the_demo_says_and_shows_what_a_chain_sees(run_folder, capsys, monkeypatch):
    run = load_run(run_folder)
    session = demo.Demo(run, load(run.config.data, "test"), "test image", [0, 1], "files")
    shown = []
    monkeypatch.setattr(session, "show", lambda name, views, columns: shown.append((name, views)))
    session.handle("3")
    session.handle("l 1 2")
    said = capsys.readouterr().out
    assert "(in colour and rotate_hue 120 + blur 1.5)" in said
    assert "2 grey, eye: sees rotate_hue 120 + blur 1.5" in said
    image = pixels(load(run.config.data, "test"), [3]).float() / 255
    name, views = shown[0]
    assert name == "target" and len(views) == 2
    assert np.array_equal(views[1].numpy(), perceive(image, CHAIN)[0].numpy())


def test_the_report_shows_what_a_chain_sees(run_folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate", str(run_folder)])
    commands.evaluate()
    page = report.write_report(Path(run_folder), 2).read_text()
    assert "sees rotate_hue 120 + blur 1.5, weight -1" in page
    run = load_run(run_folder)
    view = perceive(pixels(load(run.config.data, "test"), [0]).float() / 255, CHAIN)[0]
    shown = report.data_uri(Image.fromarray((view * 255).byte().permute(1, 2, 0).numpy()))
    assert f'<img alt="target as grey sees it" src="{shown}">' in page


def test_a_listener_with_a_chain_in_plain_words():
    about = describe_listener(ListenerConfig("a", perception=CHAIN, domain="colour"))
    assert about == "understands no attributes but colours, sees rotate hue 120 + blur 1.5, eyes lite0"
