"""The complete rules of the card game Dixit, as pure functions: every move returns a new `Game`.

Each round one player, the storyteller, gives a clue for a card of their hand. The others each submit a card that fits
the clue (two cards in a game of three), all cards are shuffled, and everyone but the storyteller votes for the card
they think is the storyteller's, never for their own. If all or none find it, the storyteller gets nothing and every
other player 2 points; otherwise the storyteller and those who found it get 3. In addition, each vote for another
player's card gives its owner 1. Hands are refilled and the next player becomes storyteller. The game ends after a round
in which a player reached `goal` points or the last card of the deck was drawn.

These are the rules of the first edition (2008), here for up to 12 players. Leaves out what Odyssey (2011) adds: a
second vote for seven or more players, at most 3 points for votes on one's card, and reshuffling the discards.

A `Game` contains hidden information; show a player only its `view`. The seed determines the deck and the shuffles, so
that a seed and the moves reproduce a game. Leaves out players (players.py), pictures, and the board.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from dixit.common import DixitError, rng

MIN_PLAYERS, MAX_PLAYERS = 3, 12  # players
Phase = Literal["tell", "submit", "vote", "over"]


@dataclass(frozen=True)
class Round:
    """A finished round; nothing of it is hidden."""

    storyteller: int
    clue: str
    table: tuple[int, ...]  # the submitted cards in shuffled order
    owners: tuple[int, ...]  # the player who submitted each of them
    votes: tuple[int, ...]  # each player's vote, an index into the table; -1 for the storyteller
    points: tuple[int, ...]  # each player's points in this round


@dataclass(frozen=True)
class Game:
    """The complete state of a game. Cards and players are numbered from 0."""

    seed: int
    players: int
    hand: int  # cards in a full hand
    goal: int
    hands: tuple[tuple[int, ...], ...]
    deck: tuple[int, ...]  # drawn from its end
    scores: tuple[int, ...]
    storyteller: int = 0
    phase: Phase = "tell"
    clue: str = ""
    storyteller_card: int = -1  # the storyteller's card
    submitted: tuple[tuple[int, ...], ...] = ()  # the cards that each player has submitted; none yet: ()
    table: tuple[int, ...] = ()  # the submitted cards in shuffled order, once all are submitted
    votes: tuple[int, ...] = ()  # each player's vote, an index into the table; -1: none
    rounds: tuple[Round, ...] = ()

    @property
    def cards_to_submit(self) -> int:
        """The number of cards that each player but the storyteller submits."""
        return 2 if self.players == MIN_PLAYERS else 1


def new_game(players: int, cards: int, seed: int = 0, hand: int = 0, goal: int = 30) -> Game:
    """Deal a game. `hand` 0 means 6 cards, or 7 in a game of three. Raises DixitError for impossible numbers."""
    hand = hand or (7 if players == MIN_PLAYERS else 6)
    if not MIN_PLAYERS <= players <= MAX_PLAYERS:
        raise DixitError(f"Dixit is for {MIN_PLAYERS} to {MAX_PLAYERS} players, not {players}")
    if hand < (2 if players == MIN_PLAYERS else 1) or goal < 1:
        raise DixitError(f"a hand of {hand} cards and a goal of {goal} points make no game")
    if cards < players * hand:
        raise DixitError(f"{players} hands of {hand} cards need at least {players * hand} cards, and there are "
                         f"{cards}; bring more images, or play with smaller hands")
    deck = rng("deck", seed).permutation(cards).tolist()
    hands = tuple(tuple(deck.pop() for _ in range(hand)) for _ in range(players))
    return Game(seed, players, hand, goal, hands, tuple(deck), (0,) * players, submitted=((),) * players,
                votes=(-1,) * players)


def tell(game: Game, card: int, clue: str) -> Game:
    """The storyteller submits a card and gives a clue."""
    _expect(game, "tell", game.storyteller)
    if card not in game.hands[game.storyteller]:
        raise DixitError(f"card {card} is not in the storyteller's hand")
    if not clue.strip():
        raise DixitError("a clue needs at least one word or sound")
    return _lay(replace(game, phase="submit", clue=clue.strip(), storyteller_card=card), game.storyteller, (card,))


def submit(game: Game, player: int, cards: tuple[int, ...]) -> Game:
    """Another player submits their card, or two in a game of three; after the last one the cards are shuffled."""
    _expect(game, "submit", player)
    if player == game.storyteller or game.submitted[player]:
        raise DixitError(f"player {player + 1} has laid down already")
    if len(set(cards)) != game.cards_to_submit or len(cards) != game.cards_to_submit:
        raise DixitError(f"player {player + 1} must lay down {game.cards_to_submit} different "
                         f"card{'s' * (game.cards_to_submit > 1)}")
    if not set(cards) <= set(game.hands[player]):
        raise DixitError(f"player {player + 1} has not got card {min(set(cards) - set(game.hands[player]))}")
    game = _lay(game, player, tuple(cards))
    if not all(game.submitted):
        return game
    laid = sorted(card for own in game.submitted for card in own)
    order = rng("table", game.seed, len(game.rounds)).permutation(len(laid)).tolist()
    return replace(game, phase="vote", table=tuple(laid[i] for i in order))


def vote(game: Game, player: int, place: int) -> Game:
    """A player votes for a card on the table, by its index, but not for their own; the last vote ends the round."""
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
    """Each player's points for a round. `owners` has the owner of each card on the table, `votes` each player's vote.

    A vote is an index into the table, -1 for none. Raises DixitError if a vote is missing.
    """
    voters = [p for p in range(len(votes)) if p != storyteller]
    if any(votes[p] < 0 for p in voters):
        raise DixitError("a round is scored when all have voted")
    found = [p for p in voters if owners[votes[p]] == storyteller]
    scored = [0] * len(votes)
    if len(found) in (0, len(voters)):
        for p in voters:
            scored[p] = 2
    else:
        for p in [storyteller, *found]:
            scored[p] = 3
    for p in voters:
        owner = owners[votes[p]]
        if owner != storyteller:
            scored[owner] += 1
    return tuple(scored)


def waiting_for(game: Game) -> list[int]:
    """The players whose move it is, who may move in any order."""
    if game.phase == "tell":
        return [game.storyteller]
    if game.phase == "submit":
        return [p for p in range(game.players) if not game.submitted[p]]
    if game.phase == "vote":
        return [p for p in range(game.players) if p != game.storyteller and game.votes[p] < 0]
    return []


def winners(game: Game) -> list[int]:
    """The players with the highest score."""
    return [p for p in range(game.players) if game.scores[p] == max(game.scores)]


def view(game: Game, player: int) -> dict[str, Any]:
    """What a player may know: their hand, the cards on the table, and the finished rounds, as plain values for JSON."""
    return {
        "player": player, "players": game.players, "phase": game.phase, "goal": game.goal,
        "hand": list(game.hands[player]), "cards_to_submit": game.cards_to_submit, "scores": list(game.scores),
        "storyteller": game.storyteller, "clue": game.clue, "deck": len(game.deck),
        "submitted": list(game.submitted[player]), "vote": game.votes[player],
        "waiting_for": waiting_for(game), "table": list(game.table),
        "may_vote": [i for i, card in enumerate(game.table) if card not in game.submitted[player]]
        if game.phase == "vote" and player != game.storyteller else [],
        "rounds": [vars(r).copy() for r in game.rounds], "winners": winners(game) if game.phase == "over" else [],
    }


def _expect(game: Game, phase: Phase, player: int) -> None:
    """Raise DixitError unless this is the phase and there is such a player."""
    if not 0 <= player < game.players:
        raise DixitError(f"there is no player {player + 1}")
    if game.phase != phase:
        verbs = {"tell": "tell", "submit": "lay down cards", "vote": "vote", "over": "move: the game is over"}
        raise DixitError(f"now is the time to {verbs[game.phase]}")


def _put(row: tuple, place: int, value: Any) -> tuple:
    return (*row[:place], value, *row[place + 1:])


def _lay(game: Game, player: int, cards: tuple[int, ...]) -> Game:
    remaining = tuple(card for card in game.hands[player] if card not in cards)
    return replace(game, hands=_put(game.hands, player, remaining), submitted=_put(game.submitted, player, cards))


def _finish(game: Game) -> Game:
    """Score the round, then refill the hands and pass to the next storyteller, or end the game."""
    owner = {card: p for p, own in enumerate(game.submitted) for card in own}
    owners = tuple(owner[card] for card in game.table)
    scored = points(game.storyteller, owners, game.votes)
    scores = tuple(a + b for a, b in zip(game.scores, scored, strict=True))
    finished = Round(game.storyteller, game.clue, game.table, owners, game.votes, scored)
    deck, hands = list(game.deck), []
    missing = sum(game.hand - len(own) for own in game.hands)
    over = max(scores) >= game.goal or missing >= len(deck)  # drawing the last card ends the game
    for own in game.hands:
        hands.append(own if over else own + tuple(deck.pop() for _ in range(game.hand - len(own))))
    return replace(
        game, hands=tuple(hands), deck=tuple(deck), scores=scores, rounds=(*game.rounds, finished), clue="",
        storyteller_card=-1, submitted=((),) * game.players, table=(), votes=(-1,) * game.players,
        phase="over" if over else "tell", storyteller=(game.storyteller + 1) % game.players)
