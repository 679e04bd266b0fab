"""Whether the speaker gives the log-probabilities that the LLM itself gives: compared on a few tokens at load time.

Faults of a family are alike in all its layers, so that the first layers suffice: as many as have each of its kinds.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, LinearAttentionCacheLayerMixin

from dixit.common import DixitError, first_line
from dixit.models.decoder import HfDecoder, LlamaDecoder
from dixit.models.head import Head

PREFIX, TOKENS = 2, 3  # of the text that is compared; a prefix that fills all positions where a window is shorter


@contextmanager
def _first_layers(llm: Any) -> Iterator[int]:
    """Leave the LLM only its first layers within the block; gives their number. All of them if they are not found."""
    config = llm.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["attention"] * count
    few = max(2, 1 + max(kinds.index(kind) for kind in set(kinds)))
    stack = next((m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if stack is None or few >= count:
        yield count
        return
    rest = list(stack[few:])
    del stack[few:]
    try:
        yield few
    finally:
        stack.extend(rest)


def _logp(logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
    return logits.float().log_softmax(-1)


def _own(llm: Any, **inputs: Tensor) -> Float[Tensor, "T V"]:
    """Log-probabilities by the LLM's own forward pass."""
    return _logp(llm(**inputs, use_cache=False).logits[0])


def _is_recurrent(cache: Any) -> bool:
    """Whether a cache holds anything but keys and values."""
    return not isinstance(cache, Cache) or any(
        not isinstance(layer, DynamicLayer | DummyLayer) or isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in cache.layers)


def _fault(llm: Any, decoder: HfDecoder | LlamaDecoder, head: Head, tokens: Int[Tensor, "T"]) -> str:
    """What differs; "" if nothing does."""
    own = _own(llm, input_ids=tokens[None])
    spread = float(own.std())
    tolerance = torch.finfo(llm.dtype).eps ** 0.5  # relative; 3e-4 in float32, 0.09 in bfloat16

    def differs(mine: Tensor, place: int, picked: Tensor | None = None) -> bool:
        wanted = own[place:place + len(mine)]
        if picked is not None:
            wanted = wanted.gather(1, picked[:, None]).squeeze(1)
        return not float((mine - wanted).square().mean().sqrt()) <= tolerance * spread  # NaN differs

    start = len(tokens) - TOKENS  # start token and prefix
    embedded = llm.get_input_embeddings()(tokens)[None]
    cache, first = decoder.prefill(embedded[:, :start])
    general = isinstance(decoder, HfDecoder)
    if general and differs(_own(llm, input_ids=tokens[None, :start])[-1:], start - 1):
        return "its predictions depend on the tokens that follow: no causal LM"
    if general and _is_recurrent(cache):
        return "it keeps no key-value cache, or a recurrent state beside it"
    if general:  # some families refuse vectors that are no token's
        decoder.prefill(embedded[:, :start].roll(1, -1))
    one = torch.zeros(1, dtype=torch.long, device=tokens.device)
    rest = tokens[start:]
    step = decoder.extend(decoder.select(cache, one.expand(2), room=1), rest[:1].expand(2, 1))[1:, -1]
    sampled = _logp(decoder.logits(torch.cat([first, step])))
    if differs(sampled[:1], start - 1):
        if differs(_own(llm, inputs_embeds=embedded), 0):
            return "it treats given embeddings otherwise than tokens"
        return "log-probabilities after a prefix differ from those of its own forward pass"
    if differs(sampled[1:], start):
        return "log-probabilities after one more token differ from those of its own forward pass"
    body = decoder.extend(decoder.select(cache, one, room=TOKENS), rest[None])[0]
    if differs(head.token_logp(torch.cat([first, body[:-1]]), rest), start - 1, picked=rest):
        return "log-probabilities of a caption differ from those of its own forward pass"
    return ""


@contextmanager
def refused_if_it_fails(llm: Any, name: str) -> Iterator[None]:
    """Whatever a model raises within the block that is not made for it becomes one line."""
    try:
        yield
    except DixitError:
        raise
    except Exception as error:
        raise DixitError(f"the speaker cannot run the LLM '{name}' ({llm.config.model_type}): {first_line(error)}; "
                         "choose another speaker.llm") from None


@torch.no_grad()
def check_speaker(llm: Any, decoder: HfDecoder | LlamaDecoder, head: Head, start: int, positions: int,
                  sharded: bool) -> None:
    """Raises an error if the speaker would give other log-probabilities than the LLM, up to `positions` tokens.

    Under sharding all layers run, in every process equally often.
    """
    config = llm.config.get_text_config(decoder=True)
    window = min(getattr(config, key, None) or positions for key in ("sliding_window", "attention_chunk_size"))
    length = positions if window < positions else min(positions, 1 + PREFIX + TOKENS)
    vocabulary = len(head.linear.weight)
    tokens = torch.arange(length, device=llm.device) * (vocabulary // length) % vocabulary
    tokens[0] = start
    if sharded:
        fault = _fault(llm, decoder, head, tokens)
    else:
        with _first_layers(llm) as layers:
            fault = _fault(llm, decoder.shortened(layers), head, tokens)
    if fault:
        raise RuntimeError(fault)
