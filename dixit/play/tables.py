"""The cards and games that web.py serves: a deck of images, and a table for each visitor with three agents at it.

A session is the seed and the moves, kept in memory and in a file, so that nothing is lost by a restart. What a visitor
is given comes from `rules.view`: nothing that is hidden from a player is in it. Leaves out HTTP.
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
from dixit.data.images import fingerprint, load, open_data, open_image, pixels
from dixit.models.clip import Clip, load_clip
from dixit.models.listeners import AttributeListener, Listener
from dixit.models.perception import perceive
from dixit.play import rules
from dixit.play.explain import caption_images, listener_labels, listener_response, listeners_looking_at
from dixit.play.players import Agent, apply, literal_clues
from dixit.training.runs import LoadedRun

PLAYERS, YOU = 4, 1  # an agent tells first, then you
NAMES = ("Ada", "You", "Ben", "Cleo")
CARDS, HAND = 84, 6  # as in the box
ASIDE = 5  # images that are no cards: the distractors of an image of one's own
GOALS = (10, 20, 30)  # points that end a game
MOST_LETTERS = 120  # of a clue
MOST_OPEN = 500  # sessions in memory; the others are in their files


@dataclass(frozen=True)
class Deck:
    """Cards, what the agents' speaker says of them, and listeners that look at them. Images are (n, 3, H, W)."""

    name: str
    images: UInt8[Tensor, "n 3 H W"]
    texts: list[str]  # what a card shows, for who cannot see it
    clues: list[str]
    aside: UInt8[Tensor, "a 3 H W"]
    configs: tuple[ListenerConfig, ...]
    listeners: Sequence[Listener]
    clips: list[Clip]  # of the listeners; none at the practice table
    hand: int
    key: str  # changes with the cards and with who looks at them


def open_deck(run: LoadedRun, name: str) -> Deck:
    """Up to CARDS cards drawn from `name`. Raises DixitError if there are too few, or nobody to look at them."""
    config = replace(run.config, eval=replace(run.config.eval, images=CARDS + ASIDE))
    configs = tuple(c for c in (*config.listeners, *config.heldout) if c.kind == "clip")
    if not configs:
        raise DixitError(f"{run.folder} has no listener of kind clip, and the agents need eyes; name a run of the game")
    dataset = load(config.data, "test") if name == "test" else open_data(name, config)
    order = [int(i) for i in rng("deck of the web", config.eval.seed).permutation(len(dataset))]
    aside, chosen = order[:ASIDE], sorted(order[ASIDE:][:CARDS])
    hand = max(2, min(HAND, len(chosen) // PLAYERS - 1))
    rules.new_game(PLAYERS, len(chosen), hand=hand)  # says so now if the cards are too few
    images = pixels(dataset, chosen)
    clues: list[str] = []
    for some in tqdm(images.split(12), desc=f"clues for {len(chosen)} cards", unit="batch"):
        clues += [said[0][0] for said in caption_images(run, some, speakers=["trained"])["trained"]]
    print(f"{len(configs)} listeners look at the cards", file=sys.stderr)
    clips = [load_clip(c.clip, c.pretrained) for c in configs]
    key = hashlib.sha256(repr((fingerprint(dataset), chosen, configs)).encode()).hexdigest()[:12]
    shown = Path(name).name if name.startswith("folder:") else name  # paths are nothing for a browser
    return Deck(shown, images, literal_clues(dataset.select(chosen)), clues, pixels(dataset, aside), configs,
                listeners_looking_at(images, configs, clips), clips, hand, key)


def practice_deck() -> Deck:
    """A table for who has trained nothing yet: drawn scenes, told by captions of their records and read by rule.

    It needs no model: two of the agents know only some of the words.
    """
    dataset = load(DataConfig(test=CARDS), "test")
    configs = tuple(ListenerConfig(name, kind="attributes", domain=domain)
                    for name, domain in (("colours only", "colour"), ("shapes only", "shape"), ("everything", "")))
    images, clues = pixels(dataset), [row[1] for row in dataset["captions"]]  # not those that stand for the images
    return Deck("drawn scenes", images, literal_clues(dataset), clues, images[:0], configs,
                [AttributeListener(dataset, c) for c in configs], [], HAND, f"practice-{fingerprint(dataset)}")


def png(image: UInt8[Tensor, "3 H W"], perception: str) -> bytes:
    """A card as a listener sees it."""
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
    moves: list[tuple[int, Any]]  # a player and its move; with the seed they make the game
    seen: int  # finished rounds whose result the visitor has left behind
    game: rules.Game
    agents: dict[int, Agent]

    def take(self, player: int, move: Any) -> None:
        self.game = apply(self.game, player, tuple(move) if isinstance(move, list) else move)
        self.moves.append((player, move))

    @property
    def pending(self) -> bool:
        """Whether the result of a round is still to be looked at: agents wait meanwhile."""
        return len(self.game.rounds) > self.seen

    def let_agents_move(self) -> None:
        while not self.pending:
            waiting = [p for p in rules.waiting_for(self.game) if p != YOU]
            if not waiting:
                return
            move = self.agents[waiting[0]].move(rules.view(self.game, waiting[0]))
            self.take(waiting[0], list(move) if isinstance(move, tuple) else move)


class Tables:
    """Every session. Methods take a session's id and give plain values; one runs at a time, for models are shared."""

    def __init__(self, run: LoadedRun | None, deck: Deck, folder: Path):
        self.run, self.deck, self.folder = run, deck, folder
        agents = [p for p in range(PLAYERS) if p != YOU]
        self.eyes = {p: i % len(deck.listeners) for i, p in enumerate(agents)}  # which listener an agent judges with
        self.lock = threading.Lock()
        self.open: OrderedDict[str, Session] = OrderedDict()
        self.picture = lru_cache(maxsize=2000)(self._picture)

    def _begin(self, seed: int, goal: int) -> Session:
        game = rules.new_game(PLAYERS, len(self.deck.clues), seed, self.deck.hand, goal)
        agents = {p: Agent(self.deck.clues, self.deck.listeners[i], seed) for p, i in self.eyes.items()}
        return Session(seed, goal, [], 0, game, agents)

    def _session(self, who: str) -> Session | None:
        """From memory, else made again from its file. A game with other cards is over."""
        if who not in self.open:
            try:
                kept = read_json(self.folder / f"{who}.json")
                if kept["deck"] != self.deck.key:
                    return None
                session = self._begin(kept["seed"], kept["goal"])
                for player, move in kept["moves"]:
                    session.take(player, move)
                session.seen = kept["seen"]
            except (DixitError, KeyError, TypeError, ValueError):
                return None
            self.open[who] = session
        self.open.move_to_end(who)
        while len(self.open) > MOST_OPEN:
            self.open.popitem(last=False)
        return self.open[who]

    def _playing(self, who: str) -> Session:
        session = self._session(who)
        if session is None:
            raise DixitError("there is no game yet; start one")
        return session

    def _keep(self, who: str, session: Session) -> dict[str, Any]:
        write_json(self.folder / f"{who}.json", {"deck": self.deck.key, "seed": session.seed, "goal": session.goal,
                                                 "seen": session.seen, "moves": session.moves})
        self.open[who] = session
        return self._state(who)

    def _state(self, who: str) -> dict[str, Any]:
        """All that the page shows."""
        session, deck = self._session(who), self.deck
        looks = [{"name": label, "perception": c.perception}
                 for label, c in zip(listener_labels(deck.configs), deck.configs, strict=True)]
        state: dict[str, Any] = {
            "run": self.run.config.name if self.run else "", "deck": deck.name, "key": deck.key,
            "cards": len(deck.clues), "goals": GOALS, "letters": MOST_LETTERS, "looks": looks, "you": YOU,
            "names": NAMES, "eyes": self.eyes, "game": None}
        if session is not None:
            view = rules.view(session.game, YOU)
            own, finished, table = _cards_of(view)
            state |= {"game": view, "pending": session.pending,
                      "texts": {c: deck.texts[c] for c in own | finished | table},
                      # What the speaker says of a card on the table would tell whose it is.
                      "clues": {c: deck.clues[c] for c in own | finished}}
        return state

    def state(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            return self._state(who)

    def new(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if asked.get("goal") not in GOALS:
                raise DixitError(f"a game goes to {', '.join(map(str, GOALS))} points")
            session = self._begin(secrets.randbits(40), asked["goal"])
            session.let_agents_move()
            return self._keep(who, session)

    def move(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Your move: {"round", "card", "clue"}, {"round", "cards"} or {"round", "place"}."""
        with self.lock:
            session = self._playing(who)
            if asked.get("round") != len(session.game.rounds) or session.pending:
                raise DixitError("the game has gone on meanwhile; look again")
            session.take(YOU, _move(session.game.phase, asked))
            session.let_agents_move()
            return self._keep(who, session)

    def go_on(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Leave the result of a round behind."""
        with self.lock:
            session = self._playing(who)
            session.seen = len(session.game.rounds)
            session.let_agents_move()
            return self._keep(who, session)

    def explain(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What each listener picks and why: in a finished round, {"round"}, or in your hand, {"card", "clue"}."""
        with self.lock:
            view = rules.view(self._playing(who).game, YOU)
            if "round" in asked:
                if not isinstance(asked["round"], int) or not 0 <= asked["round"] < len(view["rounds"]):
                    raise DixitError("that round is not finished")
                done = view["rounds"][asked["round"]]
                clue, cards = done["clue"], done["table"]
                target = cards[done["owners"].index(done["storyteller"])]
            else:  # only your own cards: minds read about the table would be the other players' votes
                clue, cards, target = _clue(asked), view["hand"], asked.get("card")
                if target not in cards:
                    raise DixitError("choose a card of your hand")
            order = [target, *[c for c in cards if c != target]]
            found = [listener_response(listener, clue, torch.tensor(order)) for listener in self.deck.listeners]
            return {"clue": clue, "cards": order, "opinions": found}

    # --- an image of one's own ---

    def keep_image(self, who: str, content: bytes) -> dict[str, Any]:
        """Take an uploaded file. Raises DixitError, which says why, if it is no image, or too large a one."""
        if self.run is None:
            raise DixitError("only a trained speaker can look at images of your own")
        if not content:
            raise DixitError("the file is empty")
        image = open_image(io.BytesIO(content), self.run.config.data.image_size, "your file")
        with self.lock, atomic_path(self.folder / f"{who}.png") as temporary:
            image.save(temporary, "PNG")
        return self.image(who, {})

    def image(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Captions of the visitor's image, and what each listener makes of them; no captions if there is none."""
        if self.run is None or not (self.folder / f"{who}.png").is_file():
            return {"said": {}}
        with self.lock:
            images = torch.cat([self._own(who)[None], self.deck.aside])
            said = {name: rows[0] for name, rows in caption_images(self.run, images[:1], samples=2).items()}
            everyone, listeners = torch.arange(len(images)), listeners_looking_at(images, self.deck.configs, self.deck.clips)
            return {"said": said, "others": len(images) - 1, "opinions": {
                name: [listener_response(listener, row[0][0], everyone) for listener in listeners]
                for name, row in said.items()}}

    def _own(self, who: str) -> UInt8[Tensor, "3 H W"]:
        image = open_image(self.folder / f"{who}.png", self.deck.images.shape[-1], "your file")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    # --- pictures ---

    def _picture(self, card: int, look: int) -> bytes:
        """A card, or from -1 down an image that lies aside; look 0 is as it is, then as each listener sees it."""
        image = self.deck.images[card] if card >= 0 else self.deck.aside[-1 - card]
        return png(image, "colour" if look == 0 else self.deck.configs[look - 1].perception)

    def show(self, who: str, what: str, look: int) -> bytes | None:
        """The picture of a card that the visitor may see, of `own`, or of an image aside (negative); else None."""
        if not 0 <= look <= len(self.deck.configs):
            return None
        if what == "own":
            if not (self.folder / f"{who}.png").is_file():
                return None
            return png(self._own(who), "colour" if look == 0 else self.deck.configs[look - 1].perception)
        card = int(what)
        with self.lock:
            session = self._session(who)
            mine = set().union(*_cards_of(rules.view(session.game, YOU))) if session else set()
        return self.picture(card, look) if card in mine or -len(self.deck.aside) <= card < 0 else None


def _cards_of(view: dict[str, Any]) -> tuple[set[int], set[int], set[int]]:
    """The cards in a view: the player's own, those of finished rounds, those on the table."""
    return (set(view["hand"]) | set(view["laid"]), {c for r in view["rounds"] for c in r["table"]}, set(view["table"]))


def _clue(asked: dict[str, Any]) -> str:
    clue = " ".join(str(asked.get("clue") or "").split())
    if not clue:
        raise DixitError("a clue needs at least one word")
    if len(clue) > MOST_LETTERS:
        raise DixitError(f"a clue has at most {MOST_LETTERS} letters")
    return clue


def _move(phase: str, asked: dict[str, Any]) -> Any:
    """The move that a request means. Raises DixitError if it means none."""
    numbers = {"tell": [asked.get("card")], "submit": asked.get("cards"), "vote": [asked.get("place")]}.get(phase, [])
    if not isinstance(numbers, list) or not numbers or any(type(n) is not int for n in numbers):
        raise DixitError("choose a card first" if phase != "over" else "the game is over; start a new one")
    if phase == "tell":
        return [numbers[0], _clue(asked)]
    return numbers if phase == "submit" else numbers[0]
