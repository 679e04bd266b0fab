"""The card game Dixit: its rules, complete and without any model. Every function returns a new game.

Each round one player, the storyteller, gives a clue for a card of their hand. The others each lay down a card that
suits the clue (two in a game of three), all are shuffled, and everyone but the storyteller votes for the card they
think is the storyteller's, never for a card of their own. If all or none find it, the storyteller gets nothing and
every other player 2 points; else the storyteller and those who found it get 3. Besides, each vote for another player's
card gives its owner 1. Hands are filled up, the next player tells. The game ends after a round in which someone reached
`goal` points or the last card of the deck was drawn.

These are the rules of the first box (2008), here for up to 12 players. Leaves out what Odyssey (2011) adds: a second
vote for seven or more, at most 3 points for votes on one's card, and shuffling the discards in again.

A game knows everything; a player may only be shown a `view`. The seed decides the deck, the shuffles and nothing else,
so a seed and the moves make the game again. Leaves out, too, who plays (players.py), pictures, and the board.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from dixit.common import DixitError, rng

LEAST, MOST = 3, 12  # players
Phase = Literal["tell", "submit", "vote", "over"]


@dataclass(frozen=True)
class Round:
    """A finished round, open to all."""

    storyteller: int
    clue: str
    table: tuple[int, ...]  # the cards as they lay
    owners: tuple[int, ...]  # whose they were
    votes: tuple[int, ...]  # of each player, a place on the table; -1 for the storyteller
    points: tuple[int, ...]  # of each player in this round


@dataclass(frozen=True)
class Game:
    """All there is to know. Cards are numbers from 0; players are places at the table."""

    seed: int
    players: int
    hand: int  # cards in a full hand
    goal: int
    hands: tuple[tuple[int, ...], ...]
    deck: tuple[int, ...]  # to be drawn from its end
    scores: tuple[int, ...]
    storyteller: int = 0
    phase: Phase = "tell"
    clue: str = ""
    told: int = -1  # the storyteller's card
    submitted: tuple[tuple[int, ...], ...] = ()  # the cards each player laid down; none yet: ()
    table: tuple[int, ...] = ()  # the cards in the order of their shuffle, once all lie there
    votes: tuple[int, ...] = ()  # of each player, a place on the table; -1: none
    rounds: tuple[Round, ...] = ()

    @property
    def lays(self) -> int:
        """How many cards each player but the storyteller lays down."""
        return 2 if self.players == LEAST else 1


def new_game(players: int, cards: int, seed: int = 0, hand: int = 0, goal: int = 30) -> Game:
    """Deal a game. `hand` 0 means 6 cards, or 7 in a game of three. Raises DixitError if it cannot be played."""
    hand = hand or (7 if players == LEAST else 6)
    if not LEAST <= players <= MOST:
        raise DixitError(f"Dixit is for {LEAST} to {MOST} players, not {players}")
    if hand < (2 if players == LEAST else 1) or goal < 1:
        raise DixitError(f"a hand of {hand} cards and a goal of {goal} points make no game")
    if cards < players * hand:
        raise DixitError(f"{players} hands of {hand} cards need at least {players * hand} cards, and there are "
                         f"{cards}; bring more images, or play with smaller hands")
    deck = rng("deck", seed).permutation(cards).tolist()
    hands = tuple(tuple(deck.pop() for _ in range(hand)) for _ in range(players))
    return Game(seed, players, hand, goal, hands, tuple(deck), (0,) * players, submitted=((),) * players,
                votes=(-1,) * players)


def tell(game: Game, card: int, clue: str) -> Game:
    """The storyteller lays down a card, face down, and says the clue."""
    _expect(game, "tell", game.storyteller)
    if card not in game.hands[game.storyteller]:
        raise DixitError(f"card {card} is not in the storyteller's hand")
    if not clue.strip():
        raise DixitError("a clue needs at least one word or sound")
    return _lay(replace(game, phase="submit", clue=clue.strip(), told=card), game.storyteller, (card,))


def submit(game: Game, player: int, cards: tuple[int, ...]) -> Game:
    """Another player lays down their card, or their two in a game of three; the last one's makes the table."""
    _expect(game, "submit", player)
    if player == game.storyteller or game.submitted[player]:
        raise DixitError(f"player {player + 1} has laid down already")
    if len(set(cards)) != game.lays or len(cards) != game.lays:
        raise DixitError(f"player {player + 1} must lay down {game.lays} different card{'s' * (game.lays > 1)}")
    if not set(cards) <= set(game.hands[player]):
        raise DixitError(f"player {player + 1} has not got card {min(set(cards) - set(game.hands[player]))}")
    game = _lay(game, player, tuple(cards))
    if not all(game.submitted):
        return game
    lying = sorted(card for own in game.submitted for card in own)
    order = rng("table", game.seed, len(game.rounds)).permutation(len(lying)).tolist()
    return replace(game, phase="vote", table=tuple(lying[i] for i in order))


def vote(game: Game, player: int, place: int) -> Game:
    """A player votes for a place on the table, not with a card of their own; the last vote ends the round."""
    _expect(game, "vote", player)
    if player == game.storyteller:
        raise DixitError("the storyteller does not vote")
    if game.votes[player] >= 0:
        raise DixitError(f"player {player + 1} has voted already")
    if not 0 <= place < len(game.table):
        raise DixitError(f"place {place} is not on the table; choose 0 to {len(game.table) - 1}")
    if game.table[place] in game.submitted[player]:
        raise DixitError("nobody may vote for a card of their own")
    game = replace(game, votes=_put(game.votes, player, place))
    waiting = [p for p in range(game.players) if p != game.storyteller and game.votes[p] < 0]
    return game if waiting else _finish(game)


def points(storyteller: int, owners: tuple[int, ...], votes: tuple[int, ...]) -> tuple[int, ...]:
    """What each player gets for a round: `owners` of the places on the table, `votes` for places (-1: no vote).

    Raises DixitError if a vote is missing.
    """
    voters = [p for p in range(len(votes)) if p != storyteller]
    if any(votes[p] < 0 for p in voters):
        raise DixitError("a round is scored when all have voted")
    found = [p for p in voters if owners[votes[p]] == storyteller]
    gained = [0] * len(votes)
    if len(found) in (0, len(voters)):
        for p in voters:
            gained[p] = 2
    else:
        for p in [storyteller, *found]:
            gained[p] = 3
    for p in voters:
        owner = owners[votes[p]]
        if owner != storyteller:
            gained[owner] += 1
    return tuple(gained)


def waiting_for(game: Game) -> list[int]:
    """The players whose move it is; several may move in any order."""
    if game.phase == "tell":
        return [game.storyteller]
    if game.phase == "submit":
        return [p for p in range(game.players) if not game.submitted[p]]
    if game.phase == "vote":
        return [p for p in range(game.players) if p != game.storyteller and game.votes[p] < 0]
    return []


def winners(game: Game) -> list[int]:
    """Who leads, several if they are level."""
    return [p for p in range(game.players) if game.scores[p] == max(game.scores)]


def view(game: Game, player: int) -> dict[str, Any]:
    """All that a player may know: their hand, what lies open, and the finished rounds. Plain values, ready for JSON."""
    return {
        "player": player, "players": game.players, "phase": game.phase, "goal": game.goal,
        "hand": list(game.hands[player]), "lays": game.lays, "scores": list(game.scores),
        "storyteller": game.storyteller, "clue": game.clue, "deck": len(game.deck),
        "laid": list(game.submitted[player]), "vote": game.votes[player],
        "waiting_for": waiting_for(game), "table": list(game.table),
        "may_vote": [i for i, card in enumerate(game.table) if card not in game.submitted[player]]
        if game.phase == "vote" and player != game.storyteller else [],
        "rounds": [vars(r).copy() for r in game.rounds], "winners": winners(game) if game.phase == "over" else [],
    }


def _expect(game: Game, phase: Phase, player: int) -> None:
    if not 0 <= player < game.players:
        raise DixitError(f"there is no player {player + 1}")
    if game.phase != phase:
        verbs = {"tell": "tell", "submit": "lay down cards", "vote": "vote", "over": "move: the game is over"}
        raise DixitError(f"now is the time to {verbs[game.phase]}")


def _put(row: tuple, place: int, value: Any) -> tuple:
    return (*row[:place], value, *row[place + 1:])


def _lay(game: Game, player: int, cards: tuple[int, ...]) -> Game:
    kept = tuple(card for card in game.hands[player] if card not in cards)
    return replace(game, hands=_put(game.hands, player, kept), submitted=_put(game.submitted, player, cards))


def _finish(game: Game) -> Game:
    """Score the round, fill the hands, pass the telling on; or end the game."""
    owner = {card: p for p, own in enumerate(game.submitted) for card in own}
    owners = tuple(owner[card] for card in game.table)
    gained = points(game.storyteller, owners, game.votes)
    scores = tuple(a + b for a, b in zip(game.scores, gained, strict=True))
    done = Round(game.storyteller, game.clue, game.table, owners, game.votes, gained)
    deck, hands = list(game.deck), []
    missing = sum(game.hand - len(own) for own in game.hands)
    over = max(scores) >= game.goal or missing >= len(deck)  # the last card drawn ends it
    for own in game.hands:
        hands.append(own if over else own + tuple(deck.pop() for _ in range(game.hand - len(own))))
    return replace(
        game, hands=tuple(hands), deck=tuple(deck), scores=scores, rounds=(*game.rounds, done), clue="", told=-1,
        submitted=((),) * game.players, table=(), votes=(-1,) * game.players, phase="over" if over else "tell",
        storyteller=(game.storyteller + 1) % game.players)
