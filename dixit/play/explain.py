"""Caption images, and explain listeners: what they are, their beliefs, and the effect of each word.

Used by the terminal demo (demo.py) and the web page (web.py).

Shapes: B images, C candidates (the first is the target), E embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dixit.config import ListenerConfig
from dixit.config_perception import perception_label
from dixit.data.names import WITHOUT_ARTICLE
from dixit.models.clip import Clip
from dixit.models.listeners import ClipListener, Listener, known_classes
from dixit.models.speaker import Speaker
from dixit.models.towers import tower_of
from dixit.training import game
from dixit.training.runs import LoadedRun

ScoredCaptions = list[tuple[str, float]]  # captions of one image, each with its probability
UNCOUNTABLE = WITHOUT_ARTICLE | {"fish", "sheep"}  # nouns that have no plural of their own


@torch.no_grad()
def caption_images(run: LoadedRun, images: UInt8[Tensor, "B 3 H W"], samples: int = 0, seed: int = 0,
             speakers: Sequence[str] = ("base", "trained")) -> dict[str, list[ScoredCaptions]]:
    """Captions by the base and the trained speaker: for each image the greedy one, then `samples` sampled ones.

    Returns speaker -> image -> captions with their probabilities. A run without a base speaker has none of it.
    """
    speaker = run.speaker
    patches = run.eyes.patches(images, "colour").to(speaker.device)
    every = {"base": run.base, "trained": speaker.trained}
    modules = {name: module for name in speakers if (module := every[name]) is not None}
    prefix = torch.cat([module(patches) for module in modules.values()])  # one pass of the LLM serves all speakers
    columns = [_scored(speaker, prefix, None)]
    if samples:
        draws = torch.rand(len(images) * samples, speaker.config.max_tokens,
                           generator=torch.Generator().manual_seed(seed)).to(speaker.device)
        several = _scored(speaker, prefix, draws.repeat(len(modules), 1))
        columns += [several[i::samples] for i in range(samples)]
    rows = iter([list(row) for row in zip(*columns, strict=True)])
    return {name: [next(rows) for _ in images] for name in modules}


def _scored(speaker: Speaker, prefix: Float[Tensor, "B K D"], draws: Float[Tensor, "S T"] | None) -> ScoredCaptions:
    tokens, mask, logp = speaker.sample(prefix, draws)
    return list(zip(speaker.decode(tokens, mask), logp.sum(1).exp().tolist(), strict=True))


def listener_labels(listeners: Sequence[ListenerConfig]) -> list[str]:
    """A label for each listener: its name, followed by its CLIP or other model if several have the same name."""
    count = Counter(c.name for c in listeners)
    return [c.name if count[c.name] == 1 else f"{c.name}, {Path(c.model or c.clip).name}" for c in listeners]


def describe_listener(c: ListenerConfig) -> str:
    """What a listener knows, understands and sees, in plain words: "expert of animals, eyes lite0".

    Limits that it does not have are left out; the last part is its image tower, the name of its CLIP, or the captioner
    that it is.
    """
    if c.kind == "attributes":
        return "reads the scene's record instead of pixels"
    parts = []
    if c.knows.eyes:
        parts.append(f"expert of {_kinds(c.knows.eyes)}")
    if c.knows.words == "basic":
        parts.append("knows everyday names only")
    if c.knows.names:
        parts.append(f"knows names of {_kinds(c.knows.names)} only" if c.knows.names != "none" else "knows no names")
    if c.domain:
        parts.append("understands no attributes" + ("" if c.domain == "thing" else f" but {_plural(c.domain)}"))
    if c.vocabulary:
        parts.append(f"understands {len(c.vocabulary)} words")
    if c.language != "english":
        parts.append(f"understands {c.language.capitalize()}")
    if c.perception != "colour":
        parts.append(f"sees {perception_label(c.perception).replace('_', ' ')}")
    if c.kind in ("captioner", "vlm"):
        return ", ".join([*parts, f"believes in an image as {Path(c.model).name} would describe it"])
    clip = Path(c.clip).name
    return ", ".join([*(parts or ["knows everything"]), f"eyes {tower_of(clip) or clip}"])


def _kinds(expression: str) -> str:
    """An expression of kinds (config.KnowledgeConfig) in plain words: "not food or animal" is "everything but food and
    animals"."""
    text = " ".join(expression.lower().split())
    *first, last = [_plural(noun) for noun in text.removeprefix("not ").split(" or ")]
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"everything but {listed}" if text.startswith("not ") else listed


def _plural(noun: str) -> str:
    if noun in UNCOUNTABLE or noun.endswith("s"):
        return noun
    if noun[-1] == "y" and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "ch", "sh")) else "s")


def make_clip_listeners(images: UInt8[Tensor, "B 3 H W"], listeners: Sequence[ListenerConfig],
               clips: Sequence[Clip]) -> list[ClipListener]:
    """Listeners of kind clip whose candidates are these images; `clips` has the CLIP of each listener."""
    return [ClipListener(clip, torch.cat([clip.embed_images(some, c.perception, known_classes(clip, c))
                                          for some in images.split(32)]), c)
            for c, clip in zip(listeners, clips, strict=True)]


def word_effects(listener: Listener, text: str, candidates: Int[Tensor, "C"]) -> list[tuple[str, float]]:
    """Each word of a text with its effect: log p(target) with it minus without it."""
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1:]) or "picture" for i in range(len(words))]
    logits = listener.score([text, *without], candidates.expand(len(without) + 1, -1))
    logp = game.target_logp(logits[None])[0]
    return list(zip(words, (logp[0] - logp[1:]).tolist(), strict=True))


def listener_response(listener: Listener, text: str, candidates: Int[Tensor, "C"]) -> dict[str, Any]:
    """A listener's belief over the candidates, the index of its choice ("pick"), and each word's effect, as plain
    values."""
    belief = listener.score([text], candidates[None])[0].softmax(0)
    return {"belief": belief.tolist(), "pick": int(belief.argmax()),
            "words": word_effects(listener, text, candidates)}
