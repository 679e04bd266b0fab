"""Who plays Dixit besides people: an agent that tells with given clues and judges with a listener, and one at random.

Anything with one method `move` is a player: it is shown what rules.view shows it and returns its move. Leaves out
people, whose moves come from a terminal or a browser.

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
        """The move that is asked for in a `rules.view`."""


class Agent:
    """Tells a card of its hand, drawn at random, by the clue it has for it; submits and votes by its listener.

    `clues` has one for every card.
    """

    def __init__(self, clues: list[str], listener: Listener, seed: int):
        self.clues, self.listener, self.seed = clues, listener, seed
        self.known: dict[str, Float[Tensor, "n"]] = {}

    def likeness(self, clue: str) -> Float[Tensor, "n"]:
        """How well every card suits a clue in the listener's eyes; asked once per clue."""
        if clue not in self.known:
            self.known[clue] = self.listener.score([clue], torch.arange(len(self.clues))[None])[0].float().cpu()
        return self.known[clue]

    def move(self, view: dict[str, Any]) -> Move:
        draws = rng("agent", self.seed, view["player"], len(view["rounds"]), view["phase"])
        if view["phase"] == "tell":
            card = int(draws.choice(view["hand"]))
            return card, self.clues[card].strip() or "..."  # a speaker may fall silent, a storyteller may not
        # Ties are broken at random: a listener that understands no word finds all cards alike.
        jitter = torch.from_numpy(draws.random(len(self.clues))) * 1e-6
        suits = self.likeness(view["clue"]) + jitter
        if view["phase"] == "submit":
            return tuple(sorted(view["hand"], key=lambda card: -float(suits[card]))[:view["lays"]])
        return max(view["may_vote"], key=lambda place: float(suits[view["table"][place]]))


class RandomPlayer:
    """Any legal move; as a clue, any of the clues given."""

    def __init__(self, clues: list[str], seed: int):
        self.clues, self.seed = clues, seed

    def move(self, view: dict[str, Any]) -> Move:
        draws = rng("random player", self.seed, view["player"], len(view["rounds"]), view["phase"])
        if view["phase"] == "tell":
            return int(draws.choice(view["hand"])), str(draws.choice(self.clues))
        if view["phase"] == "submit":
            return tuple(draws.choice(view["hand"], size=view["lays"], replace=False).tolist())
        return int(draws.choice(view["may_vote"]))


def apply(game: rules.Game, player: int, move: Any) -> rules.Game:
    """The game after a player's move. Raises DixitError if it is against the rules."""
    if game.phase == "tell":
        return rules.tell(game, *move)
    return rules.submit(game, player, move) if game.phase == "submit" else rules.vote(game, player, move)


def play_out(game: rules.Game, players: list[Player]) -> rules.Game:
    """Let the players finish a game."""
    while game.phase != "over":
        player = rules.waiting_for(game)[0]
        game = apply(game, player, players[player].move(rules.view(game, player)))
    return game


def associations(dataset: Dataset, clip: Clip, images: Float[Tensor, "n E"]) -> list[str]:
    """For each card the one word, of all in the captions, that is nearest to it in a CLIP's eyes."""
    vocabulary = sorted({w for row in dataset["captions"] for w in words(row[0]) if len(w) > 2})
    best = (images.to(clip.device) @ clip.embed_texts(vocabulary).T).argmax(1).tolist()
    return [vocabulary[i].capitalize() + "." for i in best]


def literal_clues(dataset: Dataset) -> list[str]:
    """Each card's own caption."""
    return [row[0] for row in dataset["captions"]]


def deal_seats(count: int, seats: int, game: int) -> list[int]:
    """Which of `count` kinds of player sits where: all as often as can be, in an order of the game's own."""
    return [int(i) % count for i in rng("seats", game).permutation(np.arange(seats))]
