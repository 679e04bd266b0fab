"""Agents play Dixit: legal moves, clues of their own, and the figures of a tournament."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml

from dixit.common import DixitError
from dixit.data.images import load
from dixit.play import rules
from dixit.play.players import Agent, RandomPlayer, assign_seats, literal_clues, play_out
from dixit.training.runs import load_run
from eval import commands
from eval import tournament as command_module
from eval.tables import look_up, read_cells
from eval.tournament import (
    ADJECTIVE,
    SeatedPlayer,
    deal,
    keep,
    over_cards,
    scoring_share,
    storytellers,
    strengths,
    tournament,
)

CARDS = 60


class Knows:
    """A listener to whom card i is just what "card i" says, and i's neighbours are a little like it."""

    def __init__(self, sure: bool):
        self.sure = sure

    def score(self, texts, candidates):
        storyteller_card = torch.tensor([int(text.split()[1]) for text in texts])[:, None]
        return -(candidates - storyteller_card).abs().float() * (1.0 if self.sure else 0.0)


CLUES = [f"card {i}" for i in range(CARDS)]


def test_agents_play_by_the_rules_and_their_seed():
    players = [Agent(CLUES, Knows(p % 2 == 0), seed=p) for p in range(4)] + [RandomPlayer(CLUES, 5)]
    game = play_out(rules.new_game(5, CARDS, 3), players)
    assert game.phase == "over" and game == play_out(rules.new_game(5, CARDS, 3), players)
    for r in game.rounds:
        if r.storyteller < 4:
            storyteller_card = r.table[r.owners.index(r.storyteller)]
            assert r.clue == f"card {storyteller_card}"
            for p in (0, 2):  # who understands votes for the card itself
                assert p == r.storyteller or r.owners[r.votes[p]] == r.storyteller


def test_an_agent_lays_down_what_suits_the_clue_best():
    view = {"phase": "submit", "player": 1, "rounds": [], "hand": [3, 30, 59, 12], "clue": "card 33",
            "cards_to_submit": 2}
    assert Agent(CLUES, Knows(True), 0).move(view) == (30, 12)
    vote = view | {"phase": "vote", "table": [31, 59, 34], "may_vote": [0, 1]}
    assert Agent(CLUES, Knows(True), 0).move(vote) == 0


def test_an_audience_of_one_mind_never_scores_and_a_mixed_one_does():
    clear = {"clear": CLUES}
    shares, storyteller_card = storytellers(clear, [Knows(True)], 4)
    assert shares["clear"].tolist() == [0.0] * 4 and storyteller_card["clear"][:, 1].sum() == 0  # all find every card
    mixed, storyteller_card = storytellers(clear | {"dark": ["card 0"] * CARDS}, [Knows(True), Knows(False)], 6)
    assert mixed["clear"].mean() > 0.9 > mixed["dark"].mean()
    tellings, scored = storyteller_card["clear"].sum(0)  # every game has as many rounds: 60 cards, 36 dealt, 6 a round
    assert tellings == 6 * 4 and scored == pytest.approx(24 * mixed["clear"].mean())


def test_intervals_over_cards():
    r = np.random.default_rng(0)
    rounds = np.full(200, 5.0)
    # Cards score always or never: what 1,000 rounds tell of the share is what 200 cards do.
    good, bad = (np.stack([rounds, rounds * (r.random(200) < share)], 1) for share in (0.7, 0.4))
    low, high = over_cards({"trained": good, "other": bad}, 0)["other"]
    width = 2 * 1.96 * np.std(good[:, 1] / 5 - bad[:, 1] / 5) / np.sqrt(200)
    assert 0 < low < 0.3 < high and high - low == pytest.approx(width, rel=0.1)
    assert over_cards({"trained": good}, 0)["trained"] == [0, 0]


def test_strengths_are_those_of_the_model():
    wins = np.array([[0, 750.0], [250, 0]])
    one, other = strengths(wins)
    assert one - other == pytest.approx(400 * math.log10(3), abs=1) and one + other == pytest.approx(3000)
    true = np.array([1700.0, 1500, 1400, 1400])
    p = 1 / (1 + 10 ** ((true[None] - true[:, None]) / 400))
    assert strengths(1e6 * p * (1 - np.eye(4))) == pytest.approx(true, abs=0.1)


def test_who_understands_is_rated_above_who_guesses():
    clues = {"clear": CLUES, "dark": ["card 0"] * CARDS, "other": CLUES, "random": CLUES[::-1]}
    found = tournament(clues, [Knows(True), Knows(False)], 30, 0)
    assert found.keys() == clues.keys() and found["clear"]["rating"] > found["random"]["rating"]
    assert all(row["low"] <= row["rating"] <= row["high"] for row in found.values())
    assert np.mean([row["rating"] for row in found.values()]) == pytest.approx(1500)


def test_seats_and_cards_are_dealt_evenly():
    seats = [assign_seats(3, 6, game) for game in range(20)]
    assert all(sorted(s) == [0, 0, 1, 1, 2, 2] for s in seats) and len({tuple(s) for s in seats}) > 5
    many = [assign_seats(8, 6, game) for game in range(40)]  # more than seats: each game draws six of them
    assert all(len(set(s)) == 6 for s in many) and {i for s in many for i in s} == set(range(8))
    assert len(set(deal(500, 0))) == 84 and deal(500, 0) != deal(500, 1) and sorted(deal(50, 0)) == list(range(50))
    game = play_out(rules.new_game(4, CARDS, 0), [SeatedPlayer(RandomPlayer(CLUES, 0), list(range(100, 160)))] * 4)
    assert 0 <= scoring_share(game) <= 1 and all(c < CARDS for r in game.rounds for c in r.table)


def test_the_command(command, game_run, tmp_path):
    run = shutil.copytree(game_run, tmp_path / "run")
    done = command("-m", "eval.tournament", run, "--games", "6", "eval.images=24")
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "tournament.json").read_text())
    assert found["storytellers"]["trained"]["trained_minus_this"] == 0 and found["cards"] == 24
    assert set(found["tournament"]) == {"trained", "base", "literal", "association", "random"}
    assert set(found["storytellers"]) == {*found["tournament"], "adjective"} and found["audience"] == "all"
    assert "| literal |" in done.stdout and "significant" in done.stdout
    assert found["storytellers"]["trained"]["significant"] is False
    keep("mine", found, tmp_path / "results")
    for speaker, figure, value in (("base", "scoring_rounds", found["storytellers"]["base"]["share"]),
                                   ("literal", "points", found["tournament"]["literal"]["points"])):
        assert look_up("tournament", "mine", "0", speaker, figure, folder=tmp_path / "results") == pytest.approx(
            value, rel=1e-5, abs=1e-9)
    assert look_up("tournament", "mine", "0", "base", "trained_minus_this/cards", "low", tmp_path / "results") == (
        pytest.approx(found["storytellers"]["base"]["cards_low"], rel=1e-5, abs=1e-9))


def test_heldout_listeners_alone_can_be_the_audience(game_run, home, tmp_path, monkeypatch):
    run = shutil.copytree(game_run, tmp_path / "run")
    audiences = []

    def watch(clues, listeners, games):
        audiences.append((clues, listeners))
        return storytellers(clues, listeners, games)

    monkeypatch.setattr(command_module, "storytellers", watch)
    for audience in ("all", "heldout"):
        monkeypatch.setattr("sys.argv", ["tournament", str(run), "--games", "2", "--audience", audience])
        commands.tournament()
    (clues, everyone), (same, heldout) = audiences
    assert clues == same  # the association too: it is made with a training listener's CLIP
    assert [listener.clip.name for listener in everyone] == ["eye", "eye", "other_eye", "other_eye"]
    assert [listener.clip.name for listener in heldout] == ["other_eye", "other_eye"]
    dataset = load(load_run(run).config.data, "test")
    assert set(clues["adjective"]) == {ADJECTIVE} and clues["literal"] == [row[0] for row in dataset["captions"]]
    assert clues["literal"] == literal_clues(dataset)
    found = json.loads((run / "tournament.json").read_text())
    assert found["audience"] == "heldout"
    keep("heldout", found, tmp_path / "results")
    del found["audience"]  # a file of an earlier version
    keep("earlier", found, tmp_path / "results")
    notes = {cell.condition: cell.note for cell in read_cells(tmp_path / "results")}
    assert notes == {"heldout": "2 games with 24 cards, held-out listeners only", "earlier": "2 games with 24 cards"}

    alone = tmp_path / "alone"
    shutil.copytree(run, alone)
    config = yaml.safe_load((alone / "config.yaml").read_text())
    (alone / "config.yaml").write_text(yaml.safe_dump(config | {"heldout": []}))
    monkeypatch.setattr("sys.argv", ["tournament", str(alone), "--audience", "heldout"])
    with pytest.raises(DixitError, match="no held-out listeners"):
        commands.tournament()
