"""The optimal constant solution in the speaker: does it first learn the captions' marginal, independent of the image?

Captions. Of held-out images with one object (scenes, or pictures with made-up names: training/made_captions.py), q_i
is the speaker's distribution of the token after "A" for image i; p is that of the training captions. D = KL(p || mean
q), how far the speaker is from the captions' marginal; I = mean KL(q_i || mean q), how much it depends on the image;
G, the nats per caption that a wrong image costs; the distance to the optimal constant solution (OCS), mean ||q_i -
p||^2 / ||p||^2; and the slope of true-negative rates, 1 - P(w | images without w), on 1 - p_w over attribute words w:
1 at the OCS. A pretrained LLM starts from its own prior, so D starts there. The phase: D has fallen to a tenth while
I and G have not come to a tenth of what the trained speaker `init` has on the same images. Arms: the default adapter
from scratch; the same with a trainable output bias (the language model has none), which is the clean case; and the
null, captions dealt to the wrong images, which only the OCS fits.

Reinforcement. The analogue is a collapse to the best constant message: entropy of messages and I(message; target) from
samples of a few images, each scored under all of them (so I <= log of their number); the reward of the speaker's
messages, of the same messages for other images, and of the single message that pays best on other rounds. The null
is a blind game: the target is another image than the one the speaker sees, so that only constant messages can pay.

Sizes, rates and bars are [stand-in]. Leaves out humans, and decoders trained from scratch.

Shapes: n images, V vocabulary, M messages, W words, C candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng
from dixit.config import Config
from dixit.data import scenes
from dixit.data.known import COLOUR_NAMES
from dixit.models.adapter import Adapter
from dixit.models.listeners import score_all
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.game_task import GameTask
from dixit.training.made_captions import MadeCaptions, WrittenCaptions, with_names
from dixit.training.runs import patch_batch
from dixit.training.task import Task

from .measure import (
    CaptionsAndGame,
    Finding,
    ShortCaptions,
    accelerator,
    all_curves,
    configure,
    final_states,
    new_adapter,
    plot_seeds,
    run_training,
    with_config,
)

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings(CaptionsAndGame):
    """One step of captions is 4 images x 3 captions, one of the game 4 images x 4 messages."""

    steps: int = 48
    every: int = 4
    lr: float = 1e-3
    bias_rate: float = 100.0  # of the output bias: AdamW moves every parameter alike, and logits are large
    images: int = 16  # held out, with one object
    game_steps: int = 12
    crowd: int = 5  # images in the estimate of I, with `messages` of each
    rounds: int = 32  # images in that of rewards


TINY = Settings(tokens=6, batch=4, steps=4, every=2, images=4, game_steps=2, messages=2, message_tokens=5,
                crowd=3, rounds=6)

ARMS = ("default", "output bias", "wrong captions")
GAMES = ("game", "blind game")


# ---- quantities ------------------------------------------------------------------------------------------


def divergence(p: Float[np.ndarray, "*n V"], q: Float[np.ndarray, "*n V"]) -> Float[np.ndarray, "*n"]:
    """KL(p || q) in nats over the last axis; 0 log 0 is 0."""
    ratio = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    return np.asarray(np.where(p > 0, p * ratio, 0.0).sum(-1))


def marginal_distance(p: Float[np.ndarray, "V"], q: Float[np.ndarray, "n V"]) -> float:
    """D = KL(p || mean q)."""
    return float(divergence(p, q.mean(0)))


def image_dependence(q: Float[np.ndarray, "n V"]) -> float:
    """I = mean_i KL(q_i || mean q): mutual information of image and token."""
    return float(divergence(q, np.broadcast_to(q.mean(0), q.shape)).mean())


def ocs_distance(p: Float[np.ndarray, "V"], q: Float[np.ndarray, "n V"]) -> float:
    """mean_i ||q_i - p||^2 / ||p||^2."""
    return float(((q - p) ** 2).sum(1).mean() / (p ** 2).sum())


def negative_slope(p: Float[np.ndarray, "V"], q: Float[np.ndarray, "n V"], words: Int[np.ndarray, "W"],
                   lacks: np.ndarray) -> float:
    """The least-squares slope over words w of 1 - P(w | images without w) on 1 - p_w.

    lacks (n, W) is True where the image lacks the word. Words that no caption holds there, or that no image lacks, are
    left out; NaN if fewer than two are left.
    """
    base = p[words]
    valid = (base > 0) & lacks.any(0)
    if valid.sum() < 2 or np.ptp(base[valid]) == 0:
        return float("nan")
    false = (q[:, words] * lacks)[:, valid].sum(0) / lacks[:, valid].sum(0)
    return float(np.polyfit(1 - base[valid], 1 - false, 1)[0])


def message_information(logp: Float[np.ndarray, "M n"], own: Int[np.ndarray, "M"]) -> tuple[float, float]:
    """(entropy of messages, I(message; target)) in nats, from log p(m | x) of messages sampled from images own[m].

    H = -E log mean_x p(m | x); I = E [log p(m | x_m) - log mean_x p(m | x)] <= log n.
    """
    mixture = np.logaddexp.reduce(logp, 1) - np.log(logp.shape[1])
    return float(-mixture.mean()), float((logp[np.arange(len(own)), own] - mixture).mean())


def rewards(paid: Float[np.ndarray, "n n"]) -> tuple[float, float, float]:
    """Mean rewards (of each message for its own target, of messages for other targets, of the best constant message).

    paid[m, i] is the reward of message m for target i. The best constant message is chosen on the even targets and
    evaluated on the odd ones, and vice versa: choosing and evaluating on the same rounds would be biased upwards.
    """
    n = len(paid)
    own = np.trace(paid) / n
    even = np.arange(n) % 2 == 0
    best = [paid[paid[:, side].mean(1).argmax(), ~side].mean() for side in (even, ~even)]
    return float(own), float((paid.sum() - np.trace(paid)) / (n * n - n)), float(np.mean(best))


def first_below(values: Float[np.ndarray, "times"], share: float) -> int | None:
    """The index of the first value that is below `share` of the first one."""
    below = np.flatnonzero(values < share * values[0])
    return int(below[0]) if len(below) else None


# ---- simulation ------------------------------------------------------------------------------------------


class OutputBias(nn.Module):
    """An adapter together with a trainable bias of the LLM's output."""

    def __init__(self, adapter: Adapter, vocabulary: int, rate: float):
        super().__init__()
        self.adapter, self.rate = adapter, rate
        self.raw = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, patches: Tensor) -> Tensor:
        return self.adapter(patches)

    @property
    def bias(self) -> Float[Tensor, "V"]:
        return self.rate * self.raw


class WrongCaptions:
    """The captions of another source, each dealt to the next image of the batch."""

    def __init__(self, source: MadeCaptions | WrittenCaptions):
        self.source = source

    def draw(self, index: Int[np.ndarray, "B"], *key: int | str) -> tuple[Tensor | None, list[list[str]]]:
        names, captions = self.source.draw(index, *key)
        return names, captions[-1:] + captions[:-1]


class OcsCaptions(ShortCaptions):
    """Short captions, with or without an output bias; observes D, I, G, the OCS distance and the slope."""

    def prepare(self, settings: Settings) -> None:
        """p of the training captions; held-out images with a caption that begins with "A"; which words they lack."""
        start = self.speaker.encode(["A red"])[0][0, 0]
        rows = self.captions.draw(np.arange(len(self.data)), "marginal")[1]
        tokens, mask = self.speaker.encode([text for row in rows for text in row])
        after = tokens[(tokens[:, 0] == start) & mask[:, 1]][:, 1].cpu().numpy()
        self.p = np.bincount(after, minlength=len(self.speaker.llm.get_input_embeddings().weight)) / len(after)
        names, rows = self.validation_captions.draw(np.arange(len(self.validation)), "validation")
        described = [(i, captions[0]) for i, captions in enumerate(rows) if captions and captions[0].startswith("A ")]
        self.described = np.array([i for i, _ in described[:settings.images]])
        self.texts = [text for _, text in described[:settings.images]]
        self.names = None if names is None else names[self.described]
        if isinstance(self.validation_captions, MadeCaptions):  # names are made up: only colours are the image's own
            words = sorted(COLOUR_NAMES)
            has = [set(self.validation_captions.colours[i]) for i in self.described]
        else:
            words = [w for kind in (scenes.COLOURS, scenes.SHAPES, scenes.SIZES, scenes.TEXTURES[1:]) for w in kind]
            has = [set(scenes.scene_words(json.loads(self.validation["record"][int(i)]))) for i in self.described]
        self.words = self.speaker.encode([f"A {word}" for word in words])[0][:, 1].cpu().numpy()
        self.lacks = np.array([[word not in own for word in words] for own in has])
        self.start = start.expand(len(self.described), 1)

    def bias(self) -> Tensor | float:
        return self.trained.bias if isinstance(self.trained, OutputBias) else 0.0

    def _loss(self, patches: Tensor, captions: list[list[str]], choice: np.ndarray,
              requests: Float[Tensor, "B N a"] | None = None) -> Tensor:
        if not isinstance(self.trained, OutputBias):
            return super()._loss(patches, captions, choice)
        texts = [own[int(c * len(own))] for own, row in zip(captions, choice, strict=True) for c in row]
        prefix = self.trained(patches)
        return self.nats(prefix, *self.speaker.encode(texts))

    def nats(self, prefix: Float[Tensor, "B K D"], tokens: Int[Tensor, "S T"], mask: Tensor) -> Float[Tensor, "S"]:
        """The loss of each caption in nats, including the output bias."""
        if not isinstance(self.trained, OutputBias):
            return -self.speaker.logprobs(prefix, tokens, mask).sum(1)
        states = final_states(self.speaker, prefix, tokens[:, :-1])[mask]
        logits = F.linear(states, self.speaker.llm.get_output_embeddings().weight).float() + self.bias()
        nats = F.cross_entropy(logits, tokens[mask], reduction="none")
        return torch.zeros(mask.shape, device=nats.device).masked_scatter(mask, nats).sum(1)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        patches = patch_batch(self.validation_store, self.described, self.speaker.device)
        prefix = self.trained(with_names(patches, self.names))
        states = final_states(self.speaker, prefix, self.start)[:, -1]
        logits = self.speaker.decoder.logits(states).float() + self.bias()
        q = logits.softmax(-1).double().cpu().numpy()
        tokens, mask = self.speaker.encode(self.texts)
        wrong = self.nats(prefix.roll(1, 0), tokens, mask) - self.nats(prefix, tokens, mask)
        wide = states.double()
        return {"D": marginal_distance(self.p, q), "I": image_dependence(q), "G": float(wrong.mean()),
                "distance": ocs_distance(self.p, q), "slope": negative_slope(self.p, q, self.words, self.lacks),
                "anisotropy": float(wide.mean(0).square().sum() / wide.square().sum(1).mean())}


class MessageGame(GameTask):
    """The game; validation measures messages. `blind`: the target is another image than the one described."""

    said = Task.said  # nothing: curves are looked at, not captions

    blind = False

    def prepare(self, settings: Settings) -> None:
        self.settings = settings
        self.rounds = min(settings.rounds, len(self.validation))
        pools = draw_candidates(np.arange(self.rounds), np.arange(len(self.validation)), self.config.game.candidates,
                                     "observe")
        self.pools = pools.repeat(self.rounds, 1)  # message 0 for all targets, then message 1, ...

    def candidates(self, step: int, index: Int[np.ndarray, "B"]) -> Int[Tensor, "B M C"]:
        return super().candidates(step, np.roll(index, 1) if self.blind else index)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        settings, speaker, most = self.settings, self.speaker, self.config.speaker.max_tokens
        prefix = self.trained(patch_batch(self.validation_store, np.arange(self.rounds), speaker.device))
        draws = torch.from_numpy(rng("messages").random((self.rounds, most), dtype=np.float32)).to(speaker.device)
        texts = speaker.decode(*speaker.sample(prefix, draws)[:2])
        sampled = [text for text in texts for _ in range(self.rounds)]
        logits = score_all(self.validation_listeners, sampled, self.pools)
        paid = game.listener_reward(self.config.game.reward, logits, self.audience.listener_weights)
        paid = paid.unflatten(0, (self.rounds, -1))
        own, other, best = rewards(paid.double().cpu().numpy())
        few, n = prefix[:settings.crowd], settings.messages
        draws = torch.from_numpy(rng("crowd").random((len(few) * n, most), dtype=np.float32)).to(speaker.device)
        tokens, mask, _ = speaker.sample(few, draws)
        logp = speaker.logprobs(few, tokens.repeat(len(few), 1), mask.repeat(len(few), 1)).sum(1)
        source = np.arange(len(tokens)) // n
        entropy, information = message_information(logp.view(len(few), -1).T.double().cpu().numpy(), source)
        return {"reward": own, "reward of others": other, "best constant": best, "H": entropy, "I": information}


# ---- findings --------------------------------------------------------------------------------------------

Curves = dict[str, dict[str, Float[np.ndarray, "n _times"]]]  # arm -> figure -> seeds x times


def image_dependence_share(curves: dict[str, np.ndarray], reference: dict[str, np.ndarray], seed: int) -> float:
    """How far image-dependence has come, as a share of the trained speaker's, when D has fallen to a tenth: the larger
    of I's and G's. NaN if D does not fall so far."""
    place = first_below(curves["D"][seed], 0.1)
    if place is None:
        return float("nan")
    return float(max(curves[name][seed, place] / reference[name][seed] for name in ("I", "G")))


def at_tenth(curves: dict[str, np.ndarray], name: str) -> Float[np.ndarray, "n"]:
    """A figure of each seed at the first observation at which D is below a tenth of its start."""
    places = [first_below(row, 0.1) for row in curves["D"]]
    return np.array([np.nan if k is None else row[k] for row, k in zip(curves[name], places, strict=True)])


def findings(captions: Curves, games: Curves, reference: dict[str, np.ndarray]) -> list[Finding]:
    """Verdicts; `reference` holds the trained speaker's figures on the same images, one for each seed."""
    plain, bias, wrong = (captions[arm] for arm in ARMS)
    played, blind = (games[arm] for arm in GAMES)
    seeds = range(len(plain["D"]))

    def when(curves: dict[str, np.ndarray]) -> np.ndarray:
        """The step of that observation; the last step of the run where D does not fall so far."""
        return np.nan_to_num(at_tenth(curves, "step"), nan=float(curves["step"][0, -1]))

    def lost(curves: dict[str, np.ndarray]) -> np.ndarray:
        return 1 - curves["I"][:, -1] / curves["I"][:, 0]

    found = []
    for arm, curves in zip(ARMS[:2], (plain, bias), strict=True):
        found += [
            Finding(f"captions, {arm}: share of the trained speaker's image-dependence not yet learned when D is at a "
                    "tenth (null: 0)", [1 - image_dependence_share(curves, reference, s) for s in seeds], 0.0, 0.9,
                    "the first steps buy only the captions' marginal: judge a caption warm start by the nats a wrong "
                    "image costs, not by its loss, and do not stop before that rises",
                    "the loss of the first steps already tells of images"),
            Finding(f"captions, {arm}: slope of true-negative rates when D is at a tenth (1 at the OCS; null: the "
                    "trained speaker)", at_tenth(curves, "slope"), reference["slope"], 0.2,
                    "words are said of images that lack them as often as captions hold them: look at true-negative "
                    "rates before trusting early captions", "true-negative rates need no watching"),
            Finding(f"captions, {arm}: least D over the first", curves["D"].min(1) / curves["D"][:, 0]),
            Finding(f"captions, {arm}: steps until D is at a tenth, or all there are", when(curves)),
        ]
    return found + [
        Finding("captions, wrong captions: least D over the first", wrong["D"].min(1) / wrong["D"][:, 0]),
        Finding("captions: steps saved by an output bias, as a share, at least (null: 0)", 1 - when(bias) / when(plain),
                0.0, 0.2, "an output bias takes the marginal off the adapter: train one, from the log of the words' "
                "frequencies", "an output bias is not worth its parameters: the adapter's own constant offsets do as "
                "well"),
        Finding("captions: nats that a wrong image costs at the end (null: wrong captions)", plain["G"][:, -1],
                wrong["G"][:, -1], 0.25, "images are being learned within this budget",
                "captions alone do not teach images within this budget: teach words first (configs/words_scenes.yaml)"),
        Finding("captions: anisotropy of the LLM's last hidden states at the start", plain["anisotropy"][:, 0]),
        Finding("game: share of I(message; target) lost", lost(played), 0.0, 0.25,
                "messages come to say less of their target; if their entropy falls too they become constant (make "
                "distractors hard), if it rises they become noise (lower train.lr, raise policy.samples)",
                "nothing to guard against at this rate"),
        Finding("game: the same, blind game (only constant messages can pay)", lost(blind)),
        Finding("game: entropy of messages, last less first", played["H"][:, -1] - played["H"][:, 0]),
        Finding("game: the same, blind game", blind["H"][:, -1] - blind["H"][:, 0]),
        Finding("game: reward of the best constant message at the end (null: the speaker's reward)",
                played["best constant"][:, -1], played["reward"][:, -1], 0.02,
                "one message for all images pays better than describing them: raise game.candidates, or make "
                "distractors hard, until it does not", "describing images pays; the reward needs no change"),
        Finding("game: reward gained by the speaker", played["reward"][:, -1] - played["reward"][:, 0]),
        Finding("game: of that, gained by the same messages said of other images",
                played["reward of others"][:, -1] - played["reward of others"][:, 0]),
    ]


# ---- figure ----------------------------------------------------------------------------------------------


def draw(captions: Curves, games: Curves, reference: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    titles: Sequence[tuple[str, str]] = (
        ("D", "D: to the captions' marginal"), ("I", "I: how much it depends on the image"),
        ("G", "G: nats a wrong image costs"), ("slope", "slope of true-negative rates (OCS: 1)"))
    for axis, (name, title) in zip(axes.flat, titles, strict=False):
        for arm, one in captions.items():
            plot_seeds(axis, one["step"][0], one[name], arm)
        if name in reference and name != "D":
            axis.axhline(reference[name].mean(), color="black", linestyle="--", linewidth=1, label="trained speaker")
        axis.set(title=title, xlabel="step")
    for axis, names, title in ((axes[1, 1], ("H", "I"), "game: entropy H and information I, nats"),
                               (axes[1, 2], ("reward", "best constant", "reward of others"), "game: rewards")):
        for i, name in enumerate(names):
            for arm, style in zip(GAMES, ("-", ":"), strict=True):
                axis.errorbar(games[arm]["step"][0], games[arm][name].mean(0), color=f"C{i}", linestyle=style,
                              yerr=games[arm][name].std(0) / max(1, len(games[arm][name])) ** 0.5,
                              label=f"{name}, {arm}")
        axis.set(title=title, xlabel="step")
    axes[0, 0].set_yscale("log")
    for axis in axes.flat:
        axis.legend(fontsize=7)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: three arms of captions and two games for each seed."""
    def caption_config(arm: str, seed: int) -> Config:
        return configure(settings.captions, seed, folder / f"{arm}_{seed}", tokens=settings.tokens,
                         batch=settings.batch, samples=settings.samples, lr=settings.lr, warmup=2,
                         steps=settings.steps, every=settings.every)

    config = caption_config(ARMS[0], 0)
    task = OcsCaptions(config, accelerator(folder))
    task.prepare(settings)
    vocabulary = len(task.speaker.llm.get_input_embeddings().weight)
    captions: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in ARMS}
    reference: list[dict[str, float]] = []
    for seed in range(seeds):
        trained = new_adapter(task, config, settings.init_of(seed))
        reference.append(with_config(task, config, trained).validate(0))
        for arm in ARMS:
            config = caption_config(arm, seed)
            adapter = new_adapter(task, config)
            module = OutputBias(adapter, vocabulary, settings.bias_rate) if arm == ARMS[1] else adapter
            one = with_config(task, config, module)
            if arm == ARMS[2]:
                one.captions = WrongCaptions(task.captions)
            captions[arm].append(run_training(one, config))
    del task

    def game_config(arm: str, seed: int) -> Config:
        return configure(settings.game, seed, folder / f"{arm}_{seed}", tokens=settings.message_tokens,
                         batch=settings.batch, samples=settings.messages, lr=settings.game_lr, warmup=2,
                         steps=settings.game_steps, every=settings.game_steps // 2)

    config = game_config(GAMES[0], 0)
    message_game = MessageGame(config, accelerator(folder))
    message_game.prepare(settings)
    games: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in GAMES}
    for seed in range(seeds):
        for arm in GAMES:
            config = game_config(arm, seed)
            one_game = with_config(message_game, config, new_adapter(message_game, config, settings.init_of(seed)))
            one_game.blind = arm == GAMES[1]
            games[arm].append(run_training(one_game, config))
    columns = {name: np.array([row[name] for row in reference]) for name in reference[0]}
    taught, played = ({arm: all_curves(rows) for arm, rows in records.items()} for records in (captions, games))
    return findings(taught, played, columns), draw(taught, played, columns)
