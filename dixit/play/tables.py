"""Decks and sessions of the browser game: a deck of images, and for each visitor a game with three agents.

A session is a seed and a list of moves, kept in memory and in a file, so that a restart loses nothing. A visitor gets
only what `rules.view` returns, which contains nothing that is hidden from a player. HTTP is in web.py.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dixit.common import DixitError, atomic_path, read_json, rng, write_json
from dixit.config import DataConfig, ListenerConfig
from dixit.config_perception import Perception, perception_label
from dixit.data.images import fingerprint, load, open_data, open_image, pixels
from dixit.models.clip import Clip, load_clip
from dixit.models.listeners import AttributeListener, Listener
from dixit.models.perception import perceive
from dixit.play import rules
from dixit.play.explain import (
    caption_images,
    describe_listener,
    listener_labels,
    listener_response,
    make_clip_listeners,
)
from dixit.play.players import Agent, apply_move, literal_clues
from dixit.training.runs import LoadedRun

PLAYERS, YOU = 4, 1  # player 0, an agent, is the first storyteller; the visitor is the second
NAMES = ("Ada", "You", "Ben", "Cleo")
CARDS, HAND = 84, 6  # as in the printed game
DISTRACTORS = 5  # the other candidates for an uploaded image; none of them is a card
GOALS = (10, 20, 30)  # points that end a game
MAX_CLUE_LENGTH = 120  # characters
MAX_OPEN_SESSIONS = 500  # in memory; others are read from their files


@dataclass(frozen=True)
class Deck:
    """The cards, the speaker's clues for them, and the agents' listeners."""

    name: str
    images: UInt8[Tensor, "n 3 H W"]
    texts: list[str]  # descriptions of the cards, for screen readers
    clues: list[str]
    distractors: UInt8[Tensor, "a 3 H W"]  # the other candidates for an uploaded image
    configs: tuple[ListenerConfig, ...]
    about: tuple[str, ...]  # what each listener is, for the list of players
    listeners: Sequence[Listener]
    clips: list[Clip]  # of the listeners; empty for the practice deck
    hand: int
    key: str  # changes with the cards and the listeners


def load_deck(run: LoadedRun, name: str) -> Deck:
    """Draw up to CARDS cards from data set `name`. Raises DixitError if there are too few images or no clip listener.
    """
    config = replace(run.config, eval=replace(run.config.eval, images=CARDS + DISTRACTORS))
    everyone = (in_turn(config.listeners, config.heldout) if run.eyes.named else (*config.listeners, *config.heldout))
    configs = tuple(c for c in everyone if c.kind == "clip")
    if not configs:
        raise DixitError(f"{run.folder} has no listener of kind clip, and the agents need eyes; name a run of the game")
    dataset = load(config.data, "test") if name == "test" else open_data(name, config)
    order = [int(i) for i in rng("deck of the web", config.eval.seed).permutation(len(dataset))]
    distractors, chosen = order[:DISTRACTORS], sorted(order[DISTRACTORS:][:CARDS])
    hand = max(2, min(HAND, len(chosen) // PLAYERS - 1))
    rules.new_game(PLAYERS, len(chosen), hand=hand)  # raises now if there are too few cards
    images = pixels(dataset, chosen)
    clues: list[str] = []
    for batch in tqdm(images.split(12), desc=f"clues for {len(chosen)} cards", unit="batch"):
        clues += [captions[0][0] for captions in caption_images(run, batch, speakers=["trained"])["trained"]]
    print(f"embedding the cards for {len(configs)} listeners", file=sys.stderr)
    clips = [load_clip(c.clip, c.pretrained) for c in configs]
    key = hashlib.sha256(repr((fingerprint(dataset), chosen, configs)).encode()).hexdigest()[:12]
    shown = Path(name).name if name.startswith("folder:") else name  # the browser must not see paths
    about = tuple(map(describe_listener, configs)) if run.eyes.named else _seeing(configs)
    return Deck(shown, images, literal_clues(dataset.select(chosen)), clues, pixels(dataset, distractors), configs,
                about, make_clip_listeners(images, configs, clips), clips, hand, key)


def in_turn(listeners: Sequence[ListenerConfig], heldout: Sequence[ListenerConfig]) -> tuple[ListenerConfig, ...]:
    """Training and held-out listeners in an order whose first few differ in knowledge and in image towers: the first
    training one, the second held-out one, the third training one, and so on; then those that were passed over."""
    pairs = list(zip_longest(listeners, heldout))
    order = [pair[i % 2] for i, pair in enumerate(pairs)] + [pair[1 - i % 2] for i, pair in enumerate(pairs)]
    return tuple(c for c in order if c is not None)


def _seeing(configs: Sequence[ListenerConfig]) -> tuple[str, ...]:
    return tuple(f"sees: {label}" for label in listener_labels(configs))


def practice_deck() -> Deck:
    """A deck that needs no model: synthetic scenes with written captions as clues, and listeners that read records.

    Two of the agents know only some of the words.
    """
    dataset = load(DataConfig(test=CARDS), "test")
    configs = tuple(ListenerConfig(name, kind="attributes", domain=domain)
                    for name, domain in (("colours only", "colour"), ("shapes only", "shape"), ("everything", "")))
    images, clues = pixels(dataset), [row[1] for row in dataset["captions"]]  # other captions than the descriptions
    return Deck("drawn scenes", images, literal_clues(dataset), clues, images[:0], configs, _seeing(configs),
                [AttributeListener(dataset, c) for c in configs], [], HAND, f"practice-{fingerprint(dataset)}")


def encode_png(image: UInt8[Tensor, "3 H W"], perception: Perception) -> bytes:
    """A PNG of an image as seen through a perception."""
    seen = (perceive(image[None].float() / 255, perception)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(seen).save(buffer, "PNG")
    return buffer.getvalue()


# --- the sessions ---


@dataclass
class Session:
    """One visitor's game."""

    seed: int
    goal: int
    moves: list[tuple[int, Any]]  # (player, move); seed and moves determine the game
    results_seen: int  # finished rounds whose result the visitor has dismissed
    game: rules.Game
    agents: dict[int, Agent]

    def play(self, player: int, move: Any) -> None:
        self.game = apply_move(self.game, player, tuple(move) if isinstance(move, list) else move)
        self.moves.append((player, move))

    @property
    def pending(self) -> bool:
        """Whether the visitor has not yet dismissed the last round's result; the agents wait until then."""
        return len(self.game.rounds) > self.results_seen

    def let_agents_move(self) -> None:
        while not self.pending:
            waiting = [p for p in rules.waiting_for(self.game) if p != YOU]
            if not waiting:
                return
            move = self.agents[waiting[0]].move(rules.view(self.game, waiting[0]))
            self.play(waiting[0], list(move) if isinstance(move, tuple) else move)


class Tables:
    """All sessions. Methods take a session id and return plain values; a lock lets one run at a time (shared models).
    """

    def __init__(self, run: LoadedRun | None, deck: Deck, folder: Path):
        self.run, self.deck, self.folder = run, deck, folder
        agents = [p for p in range(PLAYERS) if p != YOU]
        self.agent_listeners = {p: i % len(deck.listeners) for i, p in enumerate(agents)}
        self.lock = threading.Lock()
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self._card_png = lru_cache(maxsize=2000)(self._render_card)

    def _new_session(self, seed: int, goal: int) -> Session:
        game = rules.new_game(PLAYERS, len(self.deck.clues), seed, self.deck.hand, goal)
        agents = {p: Agent(self.deck.clues, self.deck.listeners[i], seed) for p, i in self.agent_listeners.items()}
        return Session(seed, goal, [], 0, game, agents)

    def _session(self, session_id: str) -> Session | None:
        """The session from memory, or replayed from its file; None if there is none or it was played with other cards.
        """
        if session_id not in self.sessions:
            try:
                saved = read_json(self.folder / f"{session_id}.json")
                if saved["deck"] != self.deck.key:
                    return None
                session = self._new_session(saved["seed"], saved["goal"])
                for player, move in saved["moves"]:
                    session.play(player, move)
                session.results_seen = saved["seen"]
            except (DixitError, KeyError, TypeError, ValueError):
                return None
            self.sessions[session_id] = session
        self.sessions.move_to_end(session_id)
        while len(self.sessions) > MAX_OPEN_SESSIONS:
            self.sessions.popitem(last=False)
        return self.sessions[session_id]

    def _current(self, session_id: str) -> Session:
        """The session. Raises DixitError if there is none."""
        session = self._session(session_id)
        if session is None:
            raise DixitError("there is no game yet; start one")
        return session

    def _save(self, session_id: str, session: Session) -> dict[str, Any]:
        """Write the session to its file and return the state for the page."""
        write_json(self.folder / f"{session_id}.json", {
            "deck": self.deck.key, "seed": session.seed, "goal": session.goal, "seen": session.results_seen,
            "moves": session.moves})
        self.sessions[session_id] = session
        return self._state(session_id)

    def _state(self, session_id: str) -> dict[str, Any]:
        """Everything that the page shows."""
        session, deck = self._session(session_id), self.deck
        listeners = [{"name": label, "about": about, "perception": perception_label(c.perception)}
                     for label, about, c in zip(listener_labels(deck.configs), deck.about, deck.configs, strict=True)]
        state: dict[str, Any] = {
            "run": self.run.config.name if self.run else "", "deck": deck.name, "key": deck.key,
            "cards": len(deck.clues), "goals": GOALS, "max_clue_length": MAX_CLUE_LENGTH, "listeners": listeners,
            "you": YOU, "names": NAMES, "agent_listeners": self.agent_listeners, "game": None}
        if session is not None:
            view = rules.view(session.game, YOU)
            own, finished, table = _cards_of(view)
            state |= {"game": view, "pending": session.pending,
                      "texts": {c: deck.texts[c] for c in own | finished | table},
                      # The speaker's captions of the cards on the table would reveal the storyteller's.
                      "clues": {c: deck.clues[c] for c in own | finished}}
        return state

    def state(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            return self._state(session_id)

    def new(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if request.get("goal") not in GOALS:
                raise DixitError(f"a game goes to {', '.join(map(str, GOALS))} points")
            session = self._new_session(secrets.randbits(40), request["goal"])
            session.let_agents_move()
            return self._save(session_id, session)

    def move(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Make the visitor's move: {"round", "card", "clue"}, {"round", "cards"} or {"round", "place"}."""
        with self.lock:
            session = self._current(session_id)
            if request.get("round") != len(session.game.rounds) or session.pending:
                raise DixitError("the game has gone on meanwhile; look again")
            session.play(YOU, _move(session.game.phase, request))
            session.let_agents_move()
            return self._save(session_id, session)

    def next_round(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Dismiss the result of a round."""
        with self.lock:
            session = self._current(session_id)
            session.results_seen = len(session.game.rounds)
            session.let_agents_move()
            return self._save(session_id, session)

    def explain(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Each listener's response to the clue of a finished round, {"round"}, or to a clue for a card of the visitor's
        hand, {"card", "clue"}."""
        with self.lock:
            view = rules.view(self._current(session_id).game, YOU)
            if "round" in request:
                if not isinstance(request["round"], int) or not 0 <= request["round"] < len(view["rounds"]):
                    raise DixitError("that round is not finished")
                done = view["rounds"][request["round"]]
                clue, cards = done["clue"], done["table"]
                target = cards[done["owners"].index(done["storyteller"])]
            else:  # own cards only: responses to the cards on the table would reveal the other players' votes
                clue, cards, target = _clue(request), view["hand"], request.get("card")
                if target not in cards:
                    raise DixitError("choose a card of your hand")
            order = [target, *[c for c in cards if c != target]]
            responses = [listener_response(listener, clue, torch.tensor(order)) for listener in self.deck.listeners]
            return {"clue": clue, "cards": order, "responses": responses}

    # --- uploaded images ---

    def save_image(self, session_id: str, content: bytes) -> dict[str, Any]:
        """Save an uploaded image and explain it. Raises DixitError if it is no image or too large."""
        if self.run is None:
            raise DixitError("only a trained speaker can look at images of your own")
        if not content:
            raise DixitError("the file is empty")
        image = open_image(io.BytesIO(content), self.run.config.data.image_size, "your file")
        with self.lock, atomic_path(self.folder / f"{session_id}.png") as temporary:
            image.save(temporary, "PNG")
        return self.explain_image(session_id, {})

    def explain_image(self, session_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Captions of the uploaded image and each listener's response to them; no captions if there is no image."""
        if self.run is None or not (self.folder / f"{session_id}.png").is_file():
            return {"captions": {}}
        with self.lock:
            images = torch.cat([self._uploaded(session_id)[None], self.deck.distractors])
            captions = {name: rows[0] for name, rows in caption_images(self.run, images[:1], samples=2).items()}
            everyone = torch.arange(len(images))
            listeners = make_clip_listeners(images, self.deck.configs, self.deck.clips)
            return {"captions": captions, "others": len(images) - 1, "responses": {
                name: [listener_response(listener, row[0][0], everyone) for listener in listeners]
                for name, row in captions.items()}}

    def _uploaded(self, session_id: str) -> UInt8[Tensor, "3 H W"]:
        image = open_image(self.folder / f"{session_id}.png", self.deck.images.shape[-1], "your file")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    # --- pictures ---

    def _render_card(self, card: int, look: int) -> bytes:
        """A card (from 0), or a distractor (from -1 down); look 0 is the image itself, look i what listener i - 1 sees.
        """
        image = self.deck.images[card] if card >= 0 else self.deck.distractors[-1 - card]
        return encode_png(image, "colour" if look == 0 else self.deck.configs[look - 1].perception)

    def picture(self, session_id: str, card: str, look: int) -> bytes | None:
        """The PNG of a card, of the uploaded image ("own") or of a distractor (negative), seen as `look` says.

        None if there is no such picture or the visitor may not see it.
        """
        if not 0 <= look <= len(self.deck.configs):
            return None
        if card == "own":
            if not (self.folder / f"{session_id}.png").is_file():
                return None
            image = self._uploaded(session_id)
            return encode_png(image, "colour" if look == 0 else self.deck.configs[look - 1].perception)
        number = int(card)
        with self.lock:
            session = self._session(session_id)
            visible = set().union(*_cards_of(rules.view(session.game, YOU))) if session else set()
        return self._card_png(number, look) if number in visible or -len(self.deck.distractors) <= number < 0 else None


def _cards_of(view: dict[str, Any]) -> tuple[set[int], set[int], set[int]]:
    """The cards in a view: the player's own, those of finished rounds, those on the table."""
    finished = {c for r in view["rounds"] for c in r["table"]}
    return set(view["hand"]) | set(view["submitted"]), finished, set(view["table"])


def _clue(request: dict[str, Any]) -> str:
    clue = " ".join(str(request.get("clue") or "").split())
    if not clue:
        raise DixitError("a clue needs at least one word")
    if len(clue) > MAX_CLUE_LENGTH:
        raise DixitError(f"a clue has at most {MAX_CLUE_LENGTH} letters")
    return clue


def _move(phase: str, request: dict[str, Any]) -> Any:
    """The move in a request. Raises DixitError if there is none."""
    fields = {"tell": [request.get("card")], "submit": request.get("cards"), "vote": [request.get("place")]}
    numbers = fields.get(phase, [])
    if not isinstance(numbers, list) or not numbers or any(type(n) is not int for n in numbers):
        raise DixitError("choose a card first" if phase != "over" else "the game is over; start a new one")
    if phase == "tell":
        return [numbers[0], _clue(request)]
    return numbers if phase == "submit" else numbers[0]
