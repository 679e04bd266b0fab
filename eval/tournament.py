"""Simulated Dixit games: `python -m eval.tournament RUN [--games 500] [--data DATA] [--audience all|heldout]`.

DATA is test, stamps, emoji, clipart, cifar10 or folder:PATH. The players' listeners are the run's training and held-out
ones, or with `--audience heldout` the held-out ones only.

First, storytellers. Six players with these listeners, some of them twice if there are fewer, play each deal once
with the clues of each storyteller: the trained speaker, the base speaker, the literal captioner (each card's own
caption), an associated word, a caption of a random card, one adjective for every card. A round scores if some but not
all find the card. Shares of scoring rounds and their differences from the trained speaker's have 95 % intervals by
bootstrap over games, paired, and the differences also by bootstrap over cards, which the games share. A difference is
called significant if both intervals are above 0.

Then a tournament: the first five as players at one table, each with its own listener (random: none), seats redrawn
for each game. Ratings are Bradley-Terry strengths of final scores on Elo's scale (mean 1500), with 95 % intervals.

Cards are images the speaker never trained on. Writes RUN/tournament.json (with --keep CONDITION also rows of
eval/results/tournament.csv) and prints both tables. Storytellers draw their card at random.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.tournament)

import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from dixit.common import DixitError, command_line, git_commit, rng, write_json
from dixit.config import config_hash
from dixit.data.images import open_data
from dixit.models.listeners import ClipListener
from dixit.play import rules
from dixit.play.players import Agent, Player, RandomPlayer, assign_seats, associated_words, literal_clues, play_out
from dixit.training.runs import load_run, make_listeners

from .evaluate import dataset_of, generate_captions
from .metrics import bootstrap
from .tables import RESULTS, Cell, put, rows_of

SEATS, CARDS = 6, 84  # players and cards of a game, as in the box
ADJECTIVE = "Beautiful."  # a clue for any card


def scoring_share(game: rules.Game) -> float:
    """The share of rounds in which some but not all found the storyteller's card."""
    return sum(r.points[r.storyteller] > 0 for r in game.rounds) / len(game.rounds)


def deal(cards: int, number: int) -> list[int]:
    """The cards of game `number`: CARDS of all, drawn at random."""
    return rng("cards of the game", number).choice(cards, size=min(CARDS, cards), replace=False).tolist()


def hand_for(cards: list[int], players: int) -> int:
    """The number of cards in a hand: six, or fewer so that a few rounds can be played."""
    return max(2, min(6, len(cards) // players - 1))


class SeatedPlayer:
    """Adapts a player that numbers the images of the dataset to a game with some of them (`cards`)."""

    def __init__(self, player: Player, cards: list[int]):
        self.player, self.cards, self.index = player, cards, {c: i for i, c in enumerate(cards)}

    def move(self, view: dict[str, Any]) -> Any:
        seen = view | {key: [self.cards[c] for c in view[key]] for key in ("hand", "table", "submitted")}
        move: Any = self.player.move(seen)
        if view["phase"] == "tell":
            return self.index[move[0]], move[1]
        return tuple(self.index[c] for c in move) if view["phase"] == "submit" else move


def storytellers(clues: dict[str, list[str]], listeners: list, games: int) -> tuple[
        dict[str, Float[np.ndarray, "games"]], dict[str, Float[np.ndarray, "cards 2"]]]:
    """Each storyteller's share of scoring rounds in each game; and for each card how often it was the storyteller's
    and how often it scored."""
    shares: dict[str, list[float]] = {name: [] for name in clues}
    tables = {name: [Agent(own, listener, 0) for listener in listeners] for name, own in clues.items()}
    count = len(next(iter(clues.values())))
    counts = {name: np.zeros((count, 2)) for name in clues}
    for number in tqdm(range(games), desc="storytellers", disable=None):
        cards, seats = deal(count, number), assign_seats(len(listeners), SEATS, number)
        for name, agents in tables.items():
            game = rules.new_game(SEATS, len(cards), number, hand_for(cards, SEATS))
            game = play_out(game, [SeatedPlayer(agents[i], cards) for i in seats])
            shares[name].append(scoring_share(game))
            for r in game.rounds:
                counts[name][cards[r.table[r.owners.index(r.storyteller)]]] += 1, r.points[r.storyteller] > 0
    return {name: np.array(values) for name, values in shares.items()}, counts


def over_cards(counts: dict[str, Float[np.ndarray, "cards 2"]], seed: int) -> dict[str, list[float]]:
    """95 % intervals of the trained speaker's share of scoring rounds minus each other's, by bootstrap over cards."""
    n = len(counts["trained"])
    drawn = rng("told cards", seed).multinomial(n, np.full(n, 1 / n), size=2000)  # (sample, card)
    shares = {name: (drawn @ own[:, 1]) / (drawn @ own[:, 0]).clip(1) for name, own in counts.items()}
    return {name: np.quantile(shares["trained"] - share, [0.025, 0.975]).tolist() for name, share in shares.items()}


def strengths(wins: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k"]:
    """Bradley-Terry strengths on Elo's scale from wins[i, j] of i over j, by minorisation (Hunter 2004, eq. 3).

    One draw between each pair is added, so that a player that always wins has a finite rating.
    """
    won = wins + 0.5 * (1 - np.eye(len(wins)))
    met = won + won.T
    p = np.ones(len(won))
    for _ in range(500):
        p = won.sum(1) / (met / (p[:, None] + p[None])).sum(1)
        p /= np.exp(np.log(p).mean())
    return 1500 + 400 / math.log(10) * np.log(p)


def tournament(clues: dict[str, list[str]], listeners: list, games: int, seed: int) -> dict[str, Any]:
    """Ratings and mean points of each kind of player, at tables with one of each kind."""
    names = list(clues)
    count = len(clues[names[0]])
    agents = {name: [Agent(clues[name], listener, seed) for listener in listeners] for name in names}
    any_player = RandomPlayer(clues["random"], seed)
    scores = np.zeros((games, len(names)))
    for number in tqdm(range(games), desc="tournament", disable=None):
        cards, seats = deal(count, number), assign_seats(len(names), len(names), number)
        players: list[Player] = []
        for seat, kind in enumerate(seats):
            listener_index = (number + seat) % len(listeners)
            player = any_player if names[kind] == "random" else agents[names[kind]][listener_index]
            players.append(SeatedPlayer(player, cards))
        final = play_out(rules.new_game(len(names), len(cards), number, hand_for(cards, len(names))), players).scores
        scores[number, seats] = final
    beats = (scores[:, :, None] > scores[:, None]) + 0.5 * (scores[:, :, None] == scores[:, None])
    beats *= 1 - np.eye(len(names))
    draws = rng("tournament", seed).integers(games, size=(200, games))
    spread = np.quantile([strengths(beats[d].sum(0)) for d in draws], [0.025, 0.975], axis=0)
    low, high = bootstrap(torch.from_numpy(scores.T), seed).tolist()
    return {name: {"rating": float(strengths(beats.sum(0))[i]), "low": float(spread[0, i]), "high": float(spread[1, i]),
                   "points": float(scores[:, i].mean()), "points_low": low[i], "points_high": high[i]}
            for i, name in enumerate(names)}


def keep(condition: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a tournament.json to the table of tournaments.

    Of each storyteller "scoring_rounds" and "trained_minus_this" (interval over games) and "trained_minus_this/cards"
    (over cards), of each player "rating" and "points".
    """
    audience = ", held-out listeners only" if results.get("audience") == "heldout" else ""
    cell = Cell("tournament", condition, str(results["seed"]), results["command"], results["config_hash"],
                results["commit"], seconds=results["wall_seconds"],
                note=f"{results['games']} games with {results['cards']} cards{audience}")
    rows = []
    for name, row in results["storytellers"].items():
        figures = {"scoring_rounds": {"mean": row["share"], "low": row["low"], "high": row["high"]},
                   "trained_minus_this": {"mean": row["trained_minus_this"], "low": row["difference_low"],
                                          "high": row["difference_high"]}}
        if "cards_low" in row:
            figures["trained_minus_this/cards"] = {"mean": row["trained_minus_this"], "low": row["cards_low"],
                                                   "high": row["cards_high"]}
        rows += rows_of(cell, name, {key: figure | {"n": results["games"]} for key, figure in figures.items()})
    for name, row in results["tournament"].items():
        rows += rows_of(cell, name, {
            "rating": {"mean": row["rating"], "low": row["low"], "high": row["high"], "n": results["games"]},
            "points": {"mean": row["points"], "low": row["points_low"], "high": row["points_high"],
                       "n": results["games"]}})
    put(cell, rows, folder)


def main(arguments: Namespace) -> None:
    if arguments.games < 1:
        raise DixitError(f"--games is {arguments.games}; choose at least 1")
    began = time.perf_counter()
    run = load_run(arguments.run, arguments.override)
    config = run.config
    if run.base is None or not config.listeners:
        raise DixitError(f"{arguments.run} has no base speaker or no listeners; name a run of the game that started "
                         "from one")
    if arguments.audience == "heldout" and not config.heldout:
        raise DixitError(f"--audience heldout: {arguments.run} has no held-out listeners; leave it out")
    dataset = (dataset_of(config, "test", config.eval.images) if arguments.data == "test"
               else open_data(arguments.data, config))
    made = make_listeners((*config.listeners, *config.heldout), dataset, run.speaker.device)
    audience = made[len(config.listeners):] if arguments.audience == "heldout" else made
    seeing = next((m for m in made if isinstance(m, ClipListener)), None)
    if seeing is None:
        raise DixitError("a tournament needs a listener of kind clip, for the one-word player")
    captions = generate_captions(run, dataset)
    anything = literal_clues(dataset)
    clues = {"trained": captions["trained"]["texts"], "base": captions["base"]["texts"], "literal": anything,
             "association": associated_words(dataset, seeing.clip, seeing.images),
             "random": [anything[i] for i in rng("any clue", config.eval.seed).permutation(len(anything))]}
    shares, counts = storytellers({**clues, "adjective": [ADJECTIVE] * len(dataset)}, audience, arguments.games)
    cards = over_cards(counts, config.eval.seed)
    rows = torch.from_numpy(np.stack([*shares.values(), *(shares["trained"] - v for v in shares.values())]))
    low, high = bootstrap(rows, config.eval.seed).tolist()
    k = len(shares)
    storyteller_rows = {
        name: {"share": float(rows[i].mean()), "low": low[i], "high": high[i],
               "trained_minus_this": float(rows[k + i].mean()), "difference_low": low[k + i],
               "difference_high": high[k + i], "cards_low": cards[name][0], "cards_high": cards[name][1],
               "significant": min(low[k + i], cards[name][0]) > 0} for i, name in enumerate(shares)}
    ratings = tournament(clues, audience, arguments.games, config.eval.seed)
    results = {"command": command_line(), "config_hash": config_hash(config), "commit": git_commit(),
               "seed": config.seed, "games": arguments.games, "data": arguments.data,
               "audience": arguments.audience, "cards": len(dataset),
               "wall_seconds": round(time.perf_counter() - began, 1), "storytellers": storyteller_rows,
               "tournament": ratings}
    write_json(arguments.run / "tournament.json", results)
    if arguments.keep:
        keep(arguments.keep, results)
    print(f"\n| storyteller, {arguments.games} games | scoring rounds | 95 % | trained minus this | 95 % over games | "
          "95 % over cards | significant |\n|---|---|---|---|---|---|---|")
    for name, row in storyteller_rows.items():
        print(f"| {name} | {row['share']:.3f} | {row['low']:.3f} to {row['high']:.3f} | "
              f"{row['trained_minus_this']:+.3f} | {row['difference_low']:+.3f} to {row['difference_high']:+.3f} | "
              f"{row['cards_low']:+.3f} to {row['cards_high']:+.3f} | {'yes' if row['significant'] else 'no'} |")
    print("\n| player | rating | 95 % | points |\n|---|---|---|---|")
    for name, row in sorted(ratings.items(), key=lambda item: -item[1]["rating"]):
        print(f"| {name} | {row['rating']:.0f} | {row['low']:.0f} to {row['high']:.0f} | {row['points']:.1f} |")
    print(f"\nwritten to {arguments.run / 'tournament.json'}")
