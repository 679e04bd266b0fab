"""Artificial players of Dixit: an agent with given clues and a listener, and a random player.

A player is any object with a method `move` that maps a `rules.view` to a move. Human moves come from web.py.

Shapes: n cards (images of the dataset a listener looks at).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from dixit.common import rng, words
from dixit.models.clip import Clip
from dixit.models.listeners import Listener
from dixit.play import rules

Move = tuple[int, str] | tuple[int, ...] | int  # tell: card and clue; submit: cards; vote: a place on the table


@runtime_checkable
class Player(Protocol):
    def move(self, view: dict[str, Any]) -> Move:
        """The move for the current phase of a `rules.view`."""


class Agent:
    """As storyteller it draws a card of its hand at random and gives its clue; it submits and votes by its listener.

    `clues` has one clue for every card.
    """

    def __init__(self, clues: list[str], listener: Listener, seed: int):
        self.clues, self.listener, self.seed = clues, listener, seed
        self.cache: dict[str, Float[Tensor, "n"]] = {}

    def scores_of(self, clue: str) -> Float[Tensor, "n"]:
        """The listener's score of every card for a clue, computed once per clue."""
        if clue not in self.cache:
            self.cache[clue] = self.listener.score([clue], torch.arange(len(self.clues))[None])[0].float().cpu()
        return self.cache[clue]

    def move(self, view: dict[str, Any]) -> Move:
        draws = rng("agent", self.seed, view["player"], len(view["rounds"]), view["phase"])
        if view["phase"] == "tell":
            card = int(draws.choice(view["hand"]))
            return card, self.clues[card].strip() or "..."  # a caption may be empty, a clue may not
        # Ties are broken at random: a listener that understands no word scores all cards equally.
        jitter = torch.from_numpy(draws.random(len(self.clues))) * 1e-6
        suits = self.scores_of(view["clue"]) + jitter
        if view["phase"] == "submit":
            return tuple(sorted(view["hand"], key=lambda card: -float(suits[card]))[:view["cards_to_submit"]])
        return max(view["may_vote"], key=lambda place: float(suits[view["table"][place]]))


class RandomPlayer:
    """Draws legal moves at random; its clues are drawn from `clues`."""

    def __init__(self, clues: list[str], seed: int):
        self.clues, self.seed = clues, seed

    def move(self, view: dict[str, Any]) -> Move:
        draws = rng("random player", self.seed, view["player"], len(view["rounds"]), view["phase"])
        if view["phase"] == "tell":
            return int(draws.choice(view["hand"])), str(draws.choice(self.clues))
        if view["phase"] == "submit":
            return tuple(draws.choice(view["hand"], size=view["cards_to_submit"], replace=False).tolist())
        return int(draws.choice(view["may_vote"]))


def apply_move(game: rules.Game, player: int, move: Any) -> rules.Game:
    """The game after a player's move. Raises DixitError if the move is illegal."""
    if game.phase == "tell":
        return rules.tell(game, *move)
    return rules.submit(game, player, move) if game.phase == "submit" else rules.vote(game, player, move)


def play_out(game: rules.Game, players: list[Player]) -> rules.Game:
    """Play a game to its end."""
    while game.phase != "over":
        player = rules.waiting_for(game)[0]
        game = apply_move(game, player, players[player].move(rules.view(game, player)))
    return game


def associated_words(dataset: Dataset, clip: Clip, images: Float[Tensor, "n E"]) -> list[str]:
    """For each card the word whose CLIP embedding is nearest to it, of all words in the captions."""
    vocabulary = sorted({w for row in dataset["captions"] for w in words(row[0]) if len(w) > 2})
    best = (images.to(clip.device) @ clip.embed_texts(vocabulary).T).argmax(1).tolist()
    return [vocabulary[i].capitalize() + "." for i in best]


def literal_clues(dataset: Dataset) -> list[str]:
    """Each card's own caption."""
    return [row[0] for row in dataset["captions"]]


def assign_seats(count: int, seats: int, game: int) -> list[int]:
    """For each seat the index of one of `count` kinds of player, drawn for each game: evenly distributed, or some of
    them if there are more than seats."""
    return [int(i) % count for i in rng("seats", game).permutation(np.arange(max(seats, count)))[:seats]]
