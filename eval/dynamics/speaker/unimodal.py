"""Unimodal bias in the speaker: does a partly reliable text hint hinder learning from the image?

The caption "A red circle." is preceded by one word of text, a hint: the object's colour in a share `reliable` of all
images, another colour otherwise; the image shows colour and shape. A pretrained LLM may copy words from the start (the
text gap at the start shows it), so t_text does not measure learning, while the use of the image must be learned. So
t_image is compared, the half-time of the nats that a wrong image costs. The image enters at one of three depths, and
nothing else differs: one vector, 0 at the start, is added to every token's hidden state at the input, before the middle
layer, or before the output head, which makes it a sum of logits. It is a linear map of the mean of what the trained
adapter `init` gives as its prefix, so that image features are usable from the start; all of it is trained. (A prefix at
the input, the speaker as it is, is kind "prefix": it starts without the map, so its times do not compare.) The null:
hints that are random colours, of no use.

Full loss, loss with another image, loss with another hint, on held-out images. Image gap and text gap are the last two
less the first. The unimodal phase: steps from when the loss with a wrong image has made 90 % of its fall to when the
image gap has come to 10 % of its last value. Misattribution: how far the text gap once was above its last value.

All sizes and bars are [stand-in]. The theory (Zhang, Latham, Saxe 2024) trains both pathways and every layer; here the
language model is frozen, so theory does not predict the numbers. Theory's direction, late is slow, was declared first;
the other one was added after a pilot with seed 0. Leaves out decoders trained from scratch.

Shapes: n seeds, B images, K vectors, T tokens (the hint first), D LLM width, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.data.scenes import COLOURS, oracle_caption
from dixit.models.adapter import Adapter
from dixit.models.decoder import LlamaDecoder
from dixit.models.head import TokenLogp
from dixit.models.speaker import Speaker
from dixit.training import game
from dixit.training.runs import patch_batch

from .measure import (
    Finding,
    FromTrained,
    ShortCaptions,
    accelerator,
    all_curves,
    configure,
    new_adapter,
    plot_seeds,
    run_training,
    with_config,
)

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings(FromTrained):
    """One step is 8 images with one caption each."""

    captions: str = "configs/caption_scenes.yaml"
    fusions: tuple[str, ...] = ("input", "middle", "logits")
    reliable: float = 0.75
    batch: int = 8
    steps: int = 128
    every: int = 8
    lr: float = 2e-3
    scale: float = 0.1  # of the map: AdamW moves its 0 entries by lr at once, which is far for 576 of them
    images: int = 24  # held out


TINY = Settings(fusions=("input", "logits"), batch=4, steps=4, every=2, images=6)

HINTS = ("hints", "random hints")

# ---- quantities ------------------------------------------------------------------------------------------


def crossing(times: Float[np.ndarray, "M"], values: Float[np.ndarray, "M"], level: float, last: bool = False) -> float:
    """The time at which values first reach `level` from below, or for the last time (`last`), by linear interpolation;
    NaN if never, the first time if they start above it."""
    below = np.flatnonzero(values < level)
    above = np.flatnonzero(values >= level)
    if not len(above) or (last and values[-1] < level):
        return float("nan")
    k = int(below[-1]) + 1 if last and len(below) else int(above[0])
    if k == 0:
        return float(times[0])
    part = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(times[k - 1] + part * (times[k] - times[k - 1]))


def half_time(times: Float[np.ndarray, "M"], gap: Float[np.ndarray, "M"], least: float = 0.1) -> float:
    """The time at which a gap reaches, for the last time, the middle between its first and its last value; NaN if they
    differ by less than `least` nats, because then nothing was learned. The last time, because an untrained speaker may
    be sensitive to any change of the image for a moment."""
    way = gap[-1] - gap[0]
    return crossing(times, gap, gap[0] + way / 2, last=True) if way >= least else float("nan")


def unimodal_phase(times: Float[np.ndarray, "M"], without_image: Float[np.ndarray, "M"],
                   image_gap: Float[np.ndarray, "M"]) -> float:
    """Time from when the loss without the image has made 90 % of its fall to when the image gap reaches, for the last
    time, 10 % of its last value; negative if the image is learned first. NaN if the last image gap is below 0.1
    nats."""
    if image_gap[-1] < 0.1:
        return float("nan")
    fallen = without_image[0] - without_image
    return crossing(times, image_gap, 0.1 * image_gap[-1], last=True) - crossing(times, fallen, 0.9 * fallen.max())


def overshoot(gap: Float[np.ndarray, "M"]) -> float:
    """The maximum of a gap minus its last value."""
    return float(gap.max() - gap[-1])


# ---- simulation ------------------------------------------------------------------------------------------


class Fusion(nn.Module):
    """The adapter; and, unless its vectors are the prefix, the map of their mean to one vector, 0 at the start.

    The mean is centred and scaled by its values on the `reference` patches at the start; what all images share is left
    to the map's bias.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, adapter: Adapter, reference: Float[Tensor, "n P Dv"], kind: str, scale: float):
        super().__init__()
        self.adapter, self.kind, self.scale = adapter, kind, scale
        if kind != "prefix":
            with torch.no_grad():
                mean = adapter(reference).mean(1)
            self.register_buffer("centre", mean.mean(0))
            self.register_buffer("spread", (mean - mean.mean(0)).square().mean().sqrt())
            width = mean.shape[1]
            self.into = nn.Linear(width, width)
            nn.init.zeros_(self.into.weight)
            nn.init.zeros_(self.into.bias)

    def forward(self, patches: Float[Tensor, "B P Dv"]) -> Float[Tensor, "B K D"]:
        vectors = self.adapter(patches)
        if self.kind == "prefix":
            return vectors
        return self.scale * self.into((vectors.mean(1, keepdim=True) - self.centre) / self.spread)


class _AddToOutput:
    """A frozen linear map with a tensor added to its output."""

    def __init__(self, product: Any, more: Tensor):
        self.product, self.more = product, more

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x) + self.more


def fused_states(speaker: Speaker, inputs: Float[Tensor, "B p D"], vector: Float[Tensor, "B 1 D"], place: int,
                 ) -> Float[Tensor, "B p D"]:
    """The LLM's last hidden states when `vector` is added to those before layer `place` (the number of layers: after
    the last norm)."""
    decoder: Any = copy.copy(speaker.decoder)
    more = vector.to(inputs.dtype)
    if place == 0:
        inputs = inputs + more
    elif place < len(decoder.layers):  # what comes before a layer is what the one before it adds last
        before: Any = copy.copy(decoder.layers[place - 1])
        before.down = _AddToOutput(before.down, more)
        decoder.layers = [*decoder.layers[:place - 1], before, *decoder.layers[place:]]
    states = decoder._forward(inputs, None)[0]
    return states + more if place == len(decoder.layers) else states


class HintedCaptions(ShortCaptions):
    """Captions of colour and shape after one token of text; validation measures the loss, also without image or
    hint."""

    def prepare(self, settings: Settings, useful: bool) -> None:
        """Captions and hints of every image; `useful`: as reliable as the settings say, else random."""
        if not isinstance(self.speaker.decoder, LlamaDecoder):
            raise DixitError("unimodal reaches into the layers of the LLM, and knows those of the Llama family only")
        self.count = min(settings.images, len(self.validation))
        colours = self.speaker.tokenizer([f" {colour}" for colour in COLOURS], add_special_tokens=False)["input_ids"]
        self.names = torch.tensor([ids[0] for ids in colours], device=self.speaker.device)
        self.texts, self.hints = self.material(list(self.data["record"]), settings.reliable, useful, "train")
        self.held_texts, self.held_hints = self.material(list(self.validation["record"]), settings.reliable, useful,
                                                         "held")
        layers = len(self.speaker.llm.model.layers)
        self.places = {"input": 0, "middle": layers // 2, "logits": layers}
        # What is added comes in units of the hidden states there: their root mean square over some captions.
        tokens, _ = self.speaker.encode(self.held_texts[:4])
        with torch.no_grad():
            states = self.speaker.llm.model(tokens, output_hidden_states=True).hidden_states
        self.sizes = {kind: float(states[place][:, 1:].float().square().mean().sqrt())
                      for kind, place in self.places.items()}

    def material(self, records: list[str], reliable: float, useful: bool, key: str) -> tuple[list[str], np.ndarray]:
        r, texts, hints = rng("hints", key), [], []
        for record in map(json.loads, records):
            texts.append(oracle_caption(record, {"colour", "shape"}))
            own = COLOURS.index(record["objects"][0]["colour"])
            other = int((own + 1 + r.integers(len(COLOURS) - 1)) % len(COLOURS))
            reliable_here, any_one = r.random() < reliable, int(r.integers(len(COLOURS)))
            hints.append((own if reliable_here else other) if useful else any_one)
        return texts, np.array(hints)

    def nats(self, vectors: Float[Tensor, "B K D"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"],
             hints: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The loss of each caption after its hint, in nats."""
        llm, decoder, trained = self.speaker.llm, self.speaker.decoder, self.trained
        assert isinstance(decoder, LlamaDecoder) and isinstance(trained, Fusion)
        embed = llm.get_input_embeddings().weight
        start = embed[self.speaker.start].expand(len(tokens), 1, -1)
        embedded = embed[torch.cat([self.names[hints][:, None], tokens[:, :-1]], 1)]
        if trained.kind == "prefix":
            states = decoder._forward(torch.cat([start, vectors.to(start.dtype), embedded], 1), None)[0]
        else:
            inputs = torch.cat([start, embedded], 1)
            states = fused_states(self.speaker, inputs, vectors * self.sizes[trained.kind],
                                  self.places[trained.kind])
        states = states[:, -tokens.shape[1]:]  # the hint and what follows it predict the caption
        head = llm.get_output_embeddings()
        logp = TokenLogp.apply(states[mask], head.weight, head.bias, tokens[mask], 1.0)
        return -torch.zeros(mask.shape, device=logp.device).masked_scatter(mask, logp).sum(1)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        index = game.batch_indices(self.config.seed, step, self.config.train.batch, len(self.data))
        tokens, mask = self.speaker.encode([self.texts[i] for i in index])
        vectors = self.trained(patch_batch(self.store, index, self.speaker.device))
        return self.nats(vectors, tokens, mask, torch.from_numpy(self.hints[index])).mean(), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        vectors = self.trained(patch_batch(self.validation_store, np.arange(self.count), self.speaker.device))
        tokens, mask = self.speaker.encode(self.held_texts[:self.count])
        hints = torch.from_numpy(self.held_hints[:self.count])
        full, no_image, no_text = (float(self.nats(v, tokens, mask, h).mean()) for v, h in (
            (vectors, hints), (vectors.roll(1, 0), hints), (vectors, hints.roll(1, 0))))
        return {"full": full, "without image": no_image, "image gap": no_image - full, "text gap": no_text - full}


# ---- findings --------------------------------------------------------------------------------------------

Curves = dict[tuple[str, str], dict[str, Float[np.ndarray, "n _times"]]]  # (fusion, hints) -> figure -> seeds x times


def per_seed(curves: dict[str, np.ndarray], figure: str, what: str) -> Float[np.ndarray, "n"]:
    """`half_time` or `overshoot` of a gap, or the unimodal phase, seed by seed."""
    times = curves["step"][0]
    if what == "phase":
        return np.array([unimodal_phase(times, *rows)
                         for rows in zip(curves["without image"], curves["image gap"], strict=True)])
    if what == "overshoot":
        return np.array([overshoot(row) for row in curves[figure]])
    return np.array([half_time(times, row) for row in curves[figure]])


def findings(curves: Curves) -> list[Finding]:
    """Verdicts for every fusion, and between the first and the last of those that differ in depth alone."""
    found = []
    fusions = list(dict.fromkeys(fusion for fusion, _ in curves))
    for fusion in fusions:
        hinted, random = (curves[fusion, hints] for hints in HINTS)
        span = hinted["step"][0, -1]
        image, alone = per_seed(hinted, "image gap", "half"), per_seed(random, "image gap", "half")
        found += [
            Finding(f"{fusion}: t_image, steps", image),
            Finding(f"{fusion}: t_text, steps", per_seed(hinted, "text gap", "half")),
            Finding(f"{fusion}: text gap at the start, nats", hinted["text gap"][:, 0]),
            Finding(f"{fusion}: image gap at the end, nats", hinted["image gap"][:, -1]),
            Finding(f"{fusion}: text gap at the end, nats", hinted["text gap"][:, -1]),
            Finding(f"{fusion}: unimodal phase, share of the run", per_seed(hinted, "", "phase") / span, 0.0, 0.1,
                    "for a while only text and grammar are learned: watch the nats a wrong image costs, and do not "
                    "stop at the plateau", "image and text are learned together; no plateau to sit out"),
            Finding(f"{fusion}: misattribution, nats (null: random hints)", per_seed(hinted, "text gap", "overshoot"),
                    per_seed(random, "text gap", "overshoot"), 0.1,
                    "the text context is first trusted too far: drop it from a share of the captions early on",
                    "the text context is not over-trusted; it need not be dropped"),
            Finding(f"{fusion}: t_image over that with random hints, less 1", image / alone - 1, 0.0, 0.25,
                    "useful text context slows the image down: train without it first",
                    "useful text context does not slow the image down"),
        ]
    deep = [fusion for fusion in fusions if fusion != "prefix"]
    if len(deep) > 1:
        first, last = (per_seed(curves[fusion, HINTS[0]], "image gap", "half") for fusion in (deep[0], deep[-1]))
        found += [
            Finding(f"t_image, {deep[-1]} over {deep[0]}, less 1 (null: 0)", last / first - 1, 0.0, 0.25,
                    "the later the image enters, the longer it takes: let it enter early, as the prefix does",
                    "entering late does not delay the image"),
            Finding(f"t_image, {deep[0]} over {deep[-1]}, less 1 (null: 0)", first / last - 1, 0.0, 0.25,
                    "the earlier the image enters a frozen LLM, the longer it takes: warm-start a prefix by a loss "
                    "that does not run the LLM (words), or let the image enter late",
                    "entering early does not delay the image"),
        ]
    return found


# ---- figure ----------------------------------------------------------------------------------------------


def draw(curves: Curves) -> Figure:
    fusions = list(dict.fromkeys(fusion for fusion, _ in curves))
    figure = Figure(figsize=(3.6 * len(fusions), 7), layout="constrained")
    axes = figure.subplots(2, len(fusions), squeeze=False, sharex=True, sharey="row")
    for (top, bottom), fusion in zip(axes.T, fusions, strict=True):
        for hints, style in zip(HINTS, ("-", ":"), strict=True):
            one = curves[fusion, hints]
            for axis, names in (top, ("full", "without image")), (bottom, ("image gap", "text gap")):
                for i, name in enumerate(names):
                    plot_seeds(axis, one["step"][0], one[name], f"{name}, {hints}", f"C{i}", style)
        top.set(title=f"image enters: {fusion}", ylabel="nats per caption" if fusion == fusions[0] else "")
        bottom.set(xlabel="step", ylabel="gap, nats per caption" if fusion == fusions[0] else "")
        top.legend(fontsize=7)
        bottom.legend(fontsize=7)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: every fusion with useful and with random hints."""
    def config_of(name: str, seed: int) -> Config:
        return configure(settings.captions, seed, folder / name, batch=settings.batch, lr=settings.lr, warmup=2,
                         steps=settings.steps, every=settings.every)

    task = HintedCaptions(config_of("start", 0), accelerator(folder))
    records: dict[tuple[str, str], list[list[dict[str, float]]]] = {}
    for hints in HINTS:
        task.prepare(settings, hints == HINTS[0])
        for fusion in settings.fusions:
            for seed in range(seeds):
                config = config_of(f"{fusion}_{hints}_{seed}", seed)
                adapter = new_adapter(task, config, settings.init_of(seed))
                reference = patch_batch(task.store, np.arange(min(64, len(task.store))), task.speaker.device)
                module = Fusion(adapter, reference, fusion, settings.scale)
                records.setdefault((fusion, hints), []).append(run_training(with_config(task, config, module), config))
    ordered = {(fusion, hints): all_curves(records[fusion, hints]) for fusion in settings.fusions for hints in HINTS}
    return findings(ordered), draw(ordered)
