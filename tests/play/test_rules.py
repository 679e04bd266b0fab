"""The rules of Dixit: points, hands, phases, what stays hidden, and that a seed and the moves make the game."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dixit.common import DixitError, rng
from dixit.play.rules import Game, new_game, points, submit, tell, view, vote, waiting_for, winners


@pytest.mark.parametrize(("owners", "votes", "gained"), [
    ((0, 1, 2, 3), (-1, 0, 0, 1), (3, 3 + 1, 3, 0)),  # two find it, the third takes player 2's card
    ((0, 1, 2, 3), (-1, 0, 0, 0), (0, 2, 2, 2)),  # all find it
    ((0, 1, 2, 3), (-1, 2, 1, 1), (0, 2 + 2, 2 + 1, 2)),  # none does
    ((1, 0, 0, 2, 2), (3, -1, 0), (0, 3, 3 + 1)),  # three players, two cards of each listener
])
def test_points_of_known_rounds(owners, votes, gained):
    assert points(votes.index(-1), owners, votes) == gained


@given(st.integers(3, 12), st.data())
def test_points_are_conserved(players, data):
    teller = data.draw(st.integers(0, players - 1))
    owners = tuple(range(players))
    votes = tuple(-1 if p == teller else data.draw(st.sampled_from([o for o in owners if o != p]))
                  for p in range(players))
    gained = points(teller, owners, votes)
    found = sum(owners[v] == teller for v in votes if v >= 0)
    fooled = players - 1 - found
    expected = 2 * (players - 1) if found in (0, players - 1) else 3 * (1 + found)
    assert sum(gained) == expected + fooled
    assert gained[teller] in (0, 3) and (gained[teller] == 0) == (found in (0, players - 1))
    assert points(teller, owners, votes) == gained
    with pytest.raises(DixitError, match="all have voted"):
        points(teller, owners, (-1,) * players)


def hidden_from(game: Game, player: int) -> list[int]:
    """The cards of which a player does not know where they are."""
    cards = [c for p, hand in enumerate(game.hands) if p != player for c in hand] + list(game.deck)
    if game.phase == "submit":
        cards += [c for p, own in enumerate(game.submitted) if p != player for c in own]
    return cards


def rearranged(game: Game, player: int, seed: int) -> Game:
    """Another game that a player cannot tell from this one: what is hidden from them lies elsewhere."""
    hidden = hidden_from(game, player)
    other = dict(zip(hidden, rng("hide", seed).permutation(hidden).tolist(), strict=True)) if hidden else {}

    def swap(cards: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(other.get(c, c) for c in cards)

    changed = replace(game, deck=swap(game.deck), hands=tuple(
        hand if p == player else swap(hand) for p, hand in enumerate(game.hands)))
    if game.phase == "submit":
        changed = replace(changed, storyteller_card=other.get(game.storyteller_card, game.storyteller_card),
                          submitted=tuple(own if p == player else swap(own) for p, own in enumerate(game.submitted)))
    if game.phase == "vote":  # whose the others' cards are
        others = [p for p in range(game.players) if p not in (player, game.storyteller)]
        owned = list(game.submitted)
        for p, q in zip(others, others[1:] + others[:1], strict=True):
            owned[p] = game.submitted[q]
        if player != game.storyteller:
            teller, guest = game.storyteller, others[0] if others else player
            if game.cards_to_submit == 1 and guest != player:
                owned[teller], owned[guest] = owned[guest], owned[teller]
        changed = replace(changed, submitted=tuple(owned), storyteller_card=owned[game.storyteller][0])
        # Votes stay hidden until all have voted.
        changed = replace(changed, votes=tuple(v if p == player or v < 0 else (v + 1) % len(game.table)
                                               for p, v in enumerate(game.votes)))
    return changed


class Table(RuleBasedStateMachine):
    """Any legal moves in any order."""

    @initialize(players=st.integers(3, 12), spare=st.integers(0, 60), seed=st.integers(0, 5), goal=st.integers(1, 40))
    def deal(self, players, spare, seed, goal):
        self.cards = players * (7 if players == 3 else 6) + spare
        self.game = new_game(players, self.cards, seed, goal=goal)
        self.moves: list[tuple] = []

    def move(self, function, *values):
        self.game = function(self.game, *values)
        self.moves.append((function, values))

    @precondition(lambda self: self.game.phase == "tell")
    @rule(data=st.data())
    def tells(self, data):
        self.move(tell, data.draw(st.sampled_from(self.game.hands[self.game.storyteller])), "a clue")

    @precondition(lambda self: self.game.phase == "submit")
    @rule(data=st.data())
    def cards_to_submit(self, data):
        player = data.draw(st.sampled_from(waiting_for(self.game)))
        cards = data.draw(st.permutations(self.game.hands[player]))[:self.game.cards_to_submit]
        self.move(submit, player, tuple(cards))

    @precondition(lambda self: self.game.phase == "vote")
    @rule(data=st.data())
    def votes(self, data):
        player = data.draw(st.sampled_from(waiting_for(self.game)))
        self.move(vote, player, data.draw(st.sampled_from(view(self.game, player)["may_vote"])))

    @rule(player=st.integers(-1, 12), cards=st.lists(st.integers(-1, 80), max_size=3), place=st.integers(-1, 12))
    def nonsense_is_refused_and_changes_nothing(self, player, cards, place):
        before = self.game
        for attempt in ((tell, cards[0] if cards else -1, " "), (submit, player, tuple(cards)), (vote, player, place)):
            try:
                attempt[0](self.game, *attempt[1:])  # a legal move by chance is simply not taken
            except DixitError as error:
                assert "\n" not in str(error)
        assert self.game == before

    @invariant()
    def cards_are_conserved(self):
        game = self.game
        held = [c for hand in game.hands for c in hand] + list(game.deck) + [c for own in game.submitted for c in own]
        played = [c for r in game.rounds for c in r.table]
        assert sorted(held + played) == list(range(self.cards))
        if game.phase == "tell":
            assert all(len(hand) == game.hand for hand in game.hands)
        assert bool(waiting_for(game)) == (game.phase != "over")

    @invariant()
    def scores_are_the_sum_of_the_rounds(self):
        for p in range(self.game.players):
            assert self.game.scores[p] == sum(r.points[p] for r in self.game.rounds)
        if self.game.phase == "over":
            drawn_in_a_round = self.game.players * self.game.cards_to_submit
            assert max(self.game.scores) >= self.game.goal or len(self.game.deck) <= drawn_in_a_round
            assert winners(self.game)

    @invariant()
    def nothing_hidden_is_in_a_view(self):
        for player in range(self.game.players):
            seen = view(self.game, player)
            json.dumps(seen)
            assert seen == view(rearranged(self.game, player, len(self.moves)), player)

    def teardown(self):
        if not hasattr(self, "moves"):
            return
        again = new_game(self.game.players, self.cards, self.game.seed, goal=self.game.goal)
        for function, values in self.moves:
            again = function(again, *values)
        assert again == self.game


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


def test_a_whole_game_ends_and_its_seed_makes_it_again():
    def whole(seed: int) -> Game:
        game, r = new_game(5, 84, seed), rng("moves", seed)
        while game.phase != "over":
            player = int(r.choice(waiting_for(game)))
            if game.phase == "tell":
                game = tell(game, int(r.choice(game.hands[player])), "clue")
            elif game.phase == "submit":
                game = submit(game, player, (int(r.choice(game.hands[player])),))
            else:
                game = vote(game, player, int(r.choice(view(game, player)["may_vote"])))
        return game

    game = whole(1)
    assert game == whole(1) != whole(2)
    assert [r.storyteller for r in game.rounds] == [i % 5 for i in range(len(game.rounds))]
    assert max(game.scores) >= 30 or len(game.deck) <= 5


@pytest.mark.parametrize(("players", "cards", "rounds"), [
    (6, 84, 8),  # 48 cards are left after dealing, 6 a round: the eighth draws the last
    (4, 25, 1), (4, 28, 1), (4, 29, 2),  # hands can be filled once only if there are more than four
    (3, 41, 4), (12, 84, 1),  # three players lay down five cards a round
])
def test_the_last_card_of_the_deck_ends_the_game(players, cards, rounds):
    game = new_game(players, cards, goal=1000)
    while game.phase != "over":
        player = waiting_for(game)[0]
        if game.phase == "tell":
            game = tell(game, game.hands[player][0], "clue")
        elif game.phase == "submit":
            game = submit(game, player, game.hands[player][:game.cards_to_submit])
        else:
            game = vote(game, player, view(game, player)["may_vote"][0])
    assert len(game.rounds) == rounds


@pytest.mark.parametrize(("players", "cards", "words"), [
    (2, 84, "3 to 12 players"), (13, 100, "3 to 12 players"), (4, 20, "need at least 24 cards, and there are 20"),
])
def test_games_that_cannot_be_dealt(players, cards, words):
    with pytest.raises(DixitError, match=words):
        new_game(players, cards)


def test_moves_out_of_turn_are_told_what_is_on():
    game = new_game(4, 84)
    with pytest.raises(DixitError, match="now is the time to tell"):
        vote(game, 1, 0)
    game = tell(game, game.hands[0][0], " a dream ")
    assert game.clue == "a dream" and len(game.hands[0]) == 5
    with pytest.raises(DixitError, match="has not got card"):
        submit(game, 1, (game.hands[2][0],))
    for p in (1, 2, 3):
        game = submit(game, p, (game.hands[p][0],))
    own = game.table.index(game.submitted[1][0])
    with pytest.raises(DixitError, match="a card of their own"):
        vote(game, 1, own)
    with pytest.raises(DixitError, match="storyteller does not vote"):
        vote(game, 0, own)
