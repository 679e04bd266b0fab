"""Playing with a run on pictures: experts of different kinds of things and with different eyes, on tiny models."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from starlette.testclient import TestClient
from towers import make_pictures, make_towers

from dixit.config import KnowledgeConfig, ListenerConfig
from dixit.data.images import load, open_data, pixels
from dixit.data.wordnet import wordnet
from dixit.models.clip import build_locked, load_clip, save_clip
from dixit.play import commands, demo, web
from dixit.play.explain import describe_listener, make_clip_listeners
from dixit.play.tables import Tables, in_turn, load_deck
from dixit.training.runs import load_run, make_listeners

EYES = {"animals": "animal", "vehicles": "vehicle", "food": "food or plant"}


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory, train, tiny):
    """A finished game whose CLIP names things, with three experts and the same three with other eyes."""
    wordnet()  # read from the real cache
    root = tmp_path_factory.mktemp("pictures")
    shared = {"data": make_pictures(root / "pictures", 12), "clip": {"name": "lite0-pictures"},
              "speaker": {"llm": str(tiny.llm), "prefix": 3, "width": 32, "layers": 1, "heads": 2, "max_tokens": 6},
              "train": {"steps": 2, "batch": 4, "lr": 0.01, "log_every": 1, "eval_every": 2, "save_every": 2}}
    experts = [{"name": name, "clip": "lite0-pictures", "weight": 1.0 - 2 * (i > 0), "knows": {"eyes": eyes}}
               for i, (name, eyes) in enumerate(EYES.items())]
    game = shared | {"task": "game", "listeners": experts, "game": {"candidates": 4, "reward": "dixit"},
                     "heldout": [expert | {"clip": "lite0-other-pictures"} for expert in experts]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(root / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        make_towers(root / "cache")
        shutil.copytree(tiny.cache / "assets" / "wordnet", root / "cache" / "assets" / "wordnet", symlinks=True)
        for seed, name in enumerate(("lite0-pictures", "lite0-other-pictures")):
            save_clip(build_locked(name, names=True, seed=seed), name)
        for name, config in {"base": shared | {"task": "caption"}, "experts": game}.items():
            (root / f"{name}.yaml").write_text(json.dumps(config))
            train(root / f"{name}.yaml", root / "runs" / name,
                  *([f"speaker.init={root / 'runs' / 'base'}"] if name == "experts" else []))
        yield root / "runs" / "experts"


@pytest.fixture(scope="module")
def dealt(picture_run):
    """The run, and its deck of test images."""
    run = load_run(picture_run)
    return run, load_deck(run, "test")


@pytest.mark.parametrize(("config", "words"), [
    ({"knows": {"eyes": "animal"}}, "expert of animals, eyes lite0"),
    ({"knows": {"eyes": "not animal"}, "clip": "mobilenetv2-pictures"}, "expert of everything but animals, eyes "
     "mobilenetv2"),
    ({"knows": {"eyes": "food or plant"}, "clip": "lite2-pictures"}, "expert of food and plants, eyes lite2"),
    ({"knows": {"eyes": "furniture or clothing or body part or berry or fish or box"}},
     "expert of furniture, clothing, body parts, berries, fish and boxes, eyes lite0"),
    ({"knows": {"eyes": "NOT  toys or monkey"}}, "expert of everything but toys and monkeys, eyes lite0"),
    ({"knows": {"words": "basic"}}, "knows everyday names only, eyes lite0"),
    ({"knows": {"names": "none"}, "domain": "colour"}, "knows no names, understands no attributes but colours, eyes "
     "lite0"),
    ({"domain": "thing"}, "understands no attributes, eyes lite0"),
    ({"knows": {"names": "food"}, "perception": "centre_crop"}, "knows names of food only, sees centre crop, eyes "
     "lite0"),
    ({"knows": {"eyes": "animal", "words": "basic"}, "perception": "grey", "clip": "models/my_clip"},
     "expert of animals, knows everyday names only, sees grey, eyes my_clip"),
    ({"vocabulary": ("dog", "cat")}, "understands 2 words, eyes lite0"),
    ({"language": "german", "clip": "ViT-B-32"}, "understands German, eyes ViT-B-32"),
    ({}, "knows everything, eyes lite0"),
])
def test_a_listener_in_plain_words(config, words):
    knows = KnowledgeConfig(**config.get("knows", {}))
    assert describe_listener(ListenerConfig("a", **{**config, "knows": knows})) == words


def test_the_first_listeners_in_turn_differ_in_knowledge_and_eyes():
    experts = [ListenerConfig(name, clip="lite0") for name in "abcd"]
    others = [ListenerConfig(name, clip="mobilenetv2") for name in "abcd"]
    ordered = in_turn(experts, others)
    assert [(c.name, c.clip) for c in ordered[:3]] == [("a", "lite0"), ("b", "mobilenetv2"), ("c", "lite0")]
    assert sorted(ordered, key=repr) == sorted([*experts, *others], key=repr)
    pair = in_turn(experts[:2], others[:2])  # a pair fills three seats with three different agents
    assert [(c.name, c.clip) for c in pair[:3]] == [("a", "lite0"), ("b", "mobilenetv2"), ("a", "mobilenetv2")]
    assert in_turn(experts, []) == (experts[0], experts[2], experts[1], experts[3])


def test_agents_are_experts_and_the_page_says_of_what(dealt, tmp_path):
    run, deck = dealt
    games = Tables(run, deck, tmp_path / "web")
    client = TestClient(web.make_app(tmp_path, games, ["127.0.0.1"]), base_url="http://127.0.0.1")
    client.get("/")
    state = client.post("/api/new", json={"goal": 10}).json()
    seated = [state["listeners"][i]["about"] for i in state["agent_listeners"].values()]
    assert seated == ["expert of animals, eyes lite0", "expert of vehicles, eyes lite0", "expert of food and plants, "
                      "eyes lite0"]
    clips = [deck.configs[i].clip for i in state["agent_listeners"].values()]
    assert clips == ["lite0-pictures", "lite0-other-pictures", "lite0-pictures"]
    script = client.get("/static/game.js").text
    assert "look.about" in script
    assert deck.clues == [" ".join(clue.split()) for clue in deck.clues]  # plain text: what the speaker says


def test_what_a_player_can_tell_apart_is_what_the_game_was_trained_with(dealt):
    run, _ = dealt
    dataset = load(run.config.data, "test")
    configs = (*run.config.listeners, ListenerConfig("all", clip="lite0-pictures"))
    playing = make_clip_listeners(pixels(dataset), configs, [load_clip(c.clip) for c in configs])
    for player, listener in zip(playing, make_listeners(configs, dataset), strict=True):
        torch.testing.assert_close(player.images, listener.images, atol=5e-3, rtol=0)  # the latter reads float16 caches
    assert not torch.allclose(playing[0].images, playing[1].images, atol=1e-2)


def test_a_folder_of_photographs_is_dealt(dealt, folder_of_cards, tmp_path):
    run, _ = dealt
    for card in sorted(folder_of_cards.glob("*.png"))[:20]:
        shutil.copy(card, tmp_path)
    deck = load_deck(run, f"folder:{tmp_path}")
    assert len(deck.clues) == 15 and deck.name == tmp_path.name
    assert deck.images.shape[-1] == run.config.data.image_size


def test_stamps_are_the_default_cards_where_they_are(picture_run, dealt, capsys):
    assert web.default_cards() == "test" and capsys.readouterr().err.count("\n") == 1
    stamps = picture_run.parents[1] / "cache" / "assets" / "stamps"
    shutil.copytree(picture_run.parents[1] / "pictures" / "test" / "dog", stamps / "images")
    shutil.copytree(picture_run.parents[1] / "pictures" / "test" / "violin", stamps / "images" / "more")
    labels = [{"file": f"images/{more}{i}.png", "caption": f"A dog number {more}{i}.", "category": "animals/dogs"}
              for more in ("", "more/") for i in range(12)]
    (stamps / "labels.json").write_text(json.dumps(labels))
    (stamps / "DONE.json").write_text("{}")
    try:
        assert web.default_cards() == "stamps" and capsys.readouterr().err == ""
        deck = load_deck(dealt[0], "stamps")
        assert deck.name == "stamps" and set(deck.texts) <= {label["caption"] for label in labels}
        assert len(open_data("stamps", dealt[0].config)) == 24
    finally:
        shutil.rmtree(stamps)


def test_the_terminal_says_what_the_listeners_are(picture_run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", str(picture_run), "3", "--images", "files"])
    commands.demo()
    assert re.search(r"animals, lite0-pictures picks ", capsys.readouterr().out)
    run = load_run(picture_run)
    session = demo.Demo(run, load(run.config.data, "test"), "test image", [0], "files")
    session.handle("l")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "  * 1 animals, lite0-pictures: expert of animals, eyes lite0"
    assert shown[5] == "    6 food, lite0-other-pictures: expert of food and plants, eyes lite0"
