"""From an LLM's last hidden states to log-probabilities of tokens, by the LLM's own head.

A plain head is one linear map, perhaps scaled by a constant: `TokenLogp` computes its gradient together with its value.
Any other head (soft caps, a projection before the map) runs as the model's own code and is differentiated by autograd,
in chunks that are computed again for the gradient, so that memory stays bounded there too.

Shapes: n hidden states, S captions, D width of a hidden state, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dixit.models.half import is_widened, product, wide_product

HEAD_BATCH = 256  # hidden states that are multiplied by the vocabulary at once
WIDE_BATCH = 32  # of them, those whose logits are in float32 at once
GPU_BATCH = 1024  # both on a GPU, which small pieces would leave idle


class TokenLogp(torch.autograd.Function):
    """log softmax(head(hidden) / temperature)[token] for a frozen linear head, without keeping an (n, V) tensor.

    The gradient with respect to the hidden state, (W[token] - p @ W) / temperature, is computed in the forward pass,
    while the logits are in memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Float[Tensor, "n D"], weight: Float[Tensor, "V D"], bias: Tensor | None,
                tokens: Int[Tensor, "n"], temperature: float) -> Float[Tensor, "n"]:
        # Buffers are made once, for fresh memory is slow on a CPU; the float32 one is small enough for its cache.
        on_cpu = weight.device.type == "cpu"
        chunk, rows = (HEAD_BATCH, WIDE_BATCH) if on_cpu else (GPU_BATCH, GPU_BATCH)
        logits = torch.empty(chunk, len(weight), dtype=weight.dtype, device=weight.device)
        wide = torch.empty(rows, len(weight), dtype=torch.float32, device=weight.device)
        picked, slopes = [], []
        for h, token in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            narrow = logits[:len(h)]
            if is_widened(h, weight):
                narrow.copy_(wide_product(h, weight))
            else:
                torch.mm(h, weight.t(), out=narrow)
            totals = []
            for part, own in zip(narrow.split(rows), token.split(rows), strict=True):
                p = wide[:len(part)].copy_(part)
                if bias is not None:
                    p += bias
                if temperature != 1:
                    p /= temperature
                p -= p.amax(-1, keepdim=True)
                score = p.gather(1, own[:, None])
                totals.append(p.exp_().sum(-1, keepdim=True))
                picked.append((score - totals[-1].log()).squeeze(1))
                if ctx.needs_input_grad[0]:
                    part.copy_(p)
            if ctx.needs_input_grad[0]:
                mean = product(narrow, weight.t()) / torch.cat(totals).to(weight.dtype)
                slopes.append((weight[token] - mean) / temperature)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(picked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None, None


class _Outputs(tuple):
    """A model's outputs of which only the hidden states are known; what else is asked for is None."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def body_name(llm: Any) -> str:
    """The attribute of a causal LM that is the model below its head: the one with the embeddings inside."""
    embed = llm.get_input_embeddings()
    return next(name for name, child in llm.named_children() if any(m is embed for m in child.modules()))


class _HiddenStates(nn.Module):
    """Stands for the model below the head: its inputs are taken for its last hidden states."""

    @property
    def decoder(self) -> nn.Module:  # some families call it instead
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Outputs:
        return _Outputs([inputs_embeds])


class _Logits(nn.Module):
    """Stands for a linear head: gives fixed logits, and keeps its input."""

    def __init__(self, logits: Tensor, weight: Tensor):
        super().__init__()
        self.logits, self.weight = logits, weight  # some families look up the weight's type

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return self.logits


def _replaced(model: Any, name: str, module: nn.Module) -> Any:
    """The model with another direct submodule `name`; it shares all others with `model`, which is unchanged."""
    other = copy.copy(model)
    other._modules = model._modules | {name: module}
    return other


class Head:
    """The head of a Hugging Face causal LM, with all that the model does between its last hidden states and logits."""

    def __init__(self, llm: Any):
        plain = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
        self.linear = plain.get_output_embeddings()
        # The model without its layers: its own code from hidden states to logits.
        model = _replaced(plain, body_name(plain), _HiddenStates())
        self.scale = self._scale(model)
        self.model = None if self.scale == 1 else model

    @torch.no_grad()
    def _scale(self, model: Any) -> float | None:
        """The constant by which the logits of a plain head are multiplied; None if the head is not plain."""
        names = [name for name, module in model._modules.items() if module is self.linear]
        if type(self.linear) is not nn.Linear or not names:
            return None
        weight = self.linear.weight.detach()
        hidden = torch.linspace(-1, 1, weight.shape[1], device=weight.device).to(weight.dtype)[None, None]
        raw = torch.linspace(-100, 100, len(weight), device=weight.device)[None, None]
        probe = _Logits(raw, weight)
        found = _replaced(model, names[0], probe)(inputs_embeds=hidden, use_cache=False).logits
        scale = float(found[0, 0, -1] / raw[0, 0, -1])
        plain = torch.equal(probe.x, hidden) and scale > 0 and torch.allclose(found.float(), raw * scale, rtol=1e-5)
        return scale if plain else None

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """The model's own logits."""
        if self.model is None:
            return self.linear(hidden)
        return self.model(inputs_embeds=hidden[:, None], use_cache=False).logits[:, 0]

    def token_logp(self, hidden: Float[Tensor, "n D"], tokens: Int[Tensor, "n"],
                   temperature: float = 1.0) -> Float[Tensor, "n"]:
        """Log-probabilities of tokens at this temperature, with gradients to the hidden states."""
        if self.scale is not None:
            return TokenLogp.apply(hidden, self.linear.weight, self.linear.bias, tokens, temperature / self.scale)

        def score(h: Tensor, token: Tensor) -> Tensor:
            return (self.logits(h).float() / temperature).log_softmax(-1).gather(1, token[:, None]).squeeze(1)

        chunk = HEAD_BATCH if hidden.device.type == "cpu" else GPU_BATCH
        return torch.cat([checkpoint(score, h, token, use_reentrant=False)
                          for h, token in zip(hidden.split(chunk), tokens.split(chunk), strict=True)])
