"""Caption images, and explain listeners' choices: their beliefs, and the effect of each word.

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
from dixit.models.clip import Clip
from dixit.models.listeners import ClipListener, Listener
from dixit.models.speaker import Speaker
from dixit.training import game
from dixit.training.runs import LoadedRun

ScoredCaptions = list[tuple[str, float]]  # captions of one image, each with its probability


@torch.no_grad()
def caption_images(run: LoadedRun, images: UInt8[Tensor, "B 3 H W"], samples: int = 0, seed: int = 0,
             speakers: Sequence[str] = ("base", "trained")) -> dict[str, list[ScoredCaptions]]:
    """Captions by the base and the trained speaker: for each image the greedy one, then `samples` sampled ones.

    Returns speaker -> image -> captions with their probabilities. A run without a base speaker has none of it.
    """
    speaker = run.speaker
    patches = run.clip.patches(images, "colour").to(speaker.device)
    modules = {"base": run.base, "trained": speaker.trained}
    captions = {}
    for name in speakers:
        module = modules[name]
        if module is None:
            continue
        prefix = module(patches)
        columns = [_scored(speaker, prefix, None)]
        if samples:
            draws = torch.rand(len(images) * samples, speaker.config.max_tokens,
                               generator=torch.Generator().manual_seed(seed)).to(speaker.device)
            several = _scored(speaker, prefix, draws)
            columns += [several[i::samples] for i in range(samples)]
        captions[name] = [list(row) for row in zip(*columns, strict=True)]
    return captions


def _scored(speaker: Speaker, prefix: Float[Tensor, "B K D"], draws: Float[Tensor, "S T"] | None) -> ScoredCaptions:
    tokens, mask, logp = speaker.sample(prefix, draws)
    return list(zip(speaker.decode(tokens, mask), logp.sum(1).exp().tolist(), strict=True))


def listener_labels(listeners: Sequence[ListenerConfig]) -> list[str]:
    """A label for each listener: its name, followed by its CLIP if several have the same name."""
    count = Counter(c.name for c in listeners)
    return [c.name if count[c.name] == 1 else f"{c.name}, {Path(c.clip).name}" for c in listeners]


def make_clip_listeners(images: UInt8[Tensor, "B 3 H W"], listeners: Sequence[ListenerConfig],
               clips: Sequence[Clip]) -> list[ClipListener]:
    """Listeners of kind clip whose candidates are these images; `clips` has the CLIP of each listener."""
    return [ClipListener(clip, torch.cat([clip.embed_images(some, c.perception) for some in images.split(32)]), c)
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
