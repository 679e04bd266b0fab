"""The speaker: CLIP patches -> attention adapter -> start token and K prefix vectors -> frozen LLM -> caption.

Only the adapter (and LoRA, if asked for) is trained. Captions are sampled from given uniform draws, so that the same
draws give the same captions on any number of processes. The LLM runs a prefix once per image; its key-value cache is
shared by the image's N captions, in sampling and in the update, where gradients flow through the cache.

Leaves out the adapter (adapter.py), making the LLM ready (frozen.py), its forward pass (decoder.py), its head
(head.py), speakers that are vision-language models (vlm_speaker.py), beam search and prompt text: the prefix alone
conditions the LLM.

Shapes: B images, N captions per image, S = B*N, P patches, K prefix tokens, T caption tokens, D LLM width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.config import SpeakerConfig
from dixit.models.adapter import Adapter
from dixit.models.decoder import Decoder, HfDecoder, LlamaDecoder
from dixit.models.frozen import FrozenLlm, FrozenModel, SharedLlm, shared_llm
from dixit.models.head import GPU_BATCH, Head
from dixit.models.llm import add_lora
from dixit.models.sharding import max_over_processes, shard_layers

MICRO_BATCH = 32  # captions scored at once; fewer means less padding, more means wider matrix products; GPU_BATCH on a
# GPU, for activations are kept for backward in any case
BLOCK = 256  # of the vocabulary, in sampling
Prefilled = tuple[Any, Float[Tensor, "B D"]]  # a prefix that has run: its cache and last hidden states
Captions = tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"], Float[Tensor, "S T"]]  # tokens, mask, log-probs


def _scaled(logits: Float[Tensor, "*n V"], temperature: float) -> Float[Tensor, "*n V"]:
    """Logits divided by the temperature, in float32; in place where they already are float32."""
    wide = logits.float()
    return wide if temperature == 1 else wide.div_(temperature)


def sample_token(logits: Float[Tensor, "S V"],
         uniforms: Float[Tensor, "S"] | None) -> tuple[Int[Tensor, "S"], Float[Tensor, "S"]]:
    """Tokens by inverse CDF from `uniforms` in [0, 1], or the most probable ones; and their log-probabilities.

    The CDF is summed over blocks of the vocabulary first: a cumulative sum over all of it is slow.
    """
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp_()
    size = weights.shape[1]
    # Where the blocks divide the vocabulary nothing is copied: F.pad copies even where it adds nothing.
    blocks = (weights if size % BLOCK == 0 else F.pad(weights, (0, -size % BLOCK))).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1)
    cdf = sums.cumsum(-1)
    if uniforms is None:
        token = logits.argmax(-1)
    else:
        goal = uniforms[:, None] * cdf[:, -1:]
        block = torch.searchsorted(cdf, goal).clamp_(max=cdf.shape[1] - 1)
        rest = goal - (cdf - sums).gather(1, block)
        inside = blocks[torch.arange(len(blocks), device=logits.device), block.squeeze(1)].cumsum(-1)
        token = (block * BLOCK + torch.searchsorted(inside, rest).clamp_(max=BLOCK - 1)).squeeze(1)
        token = token.clamp_(max=size - 1)
    return token, (logits.gather(1, token[:, None]) - top).squeeze(1) - cdf[:, -1].log()


def with_lora(frozen: FrozenModel, config: SpeakerConfig) -> nn.ParameterDict:
    """Add LoRA to a model that no other speaker shares; its parameters."""
    frozen.model = add_lora(frozen.model, config.llm, config.lora_rank, config.lora_targets)
    return nn.ParameterDict({n.replace(".", "_"): p for n, p in frozen.model.named_parameters() if p.requires_grad})


class Speaker:
    """A trainable `adapter` in front of a frozen LLM.

    `trained` is the module that holds exactly the trained parameters (adapter, and LoRA's); its forward is
    the adapter's. It may be replaced by a wrapped (distributed) version of itself. `row_width`: see Adapter.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, seed: int = 0,
                 device: str | torch.device = "cpu", row_width: int = 0):
        positions = 1 + config.prefix + config.max_tokens
        own = bool(config.lora_rank or config.shard)  # an LLM that changes is not shared
        frozen = FrozenLlm(config, positions) if own else shared_llm(config, positions, device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter = Adapter(config, patches, patch_width, frozen.width, frozen.scale, row_width)
            if config.lora_rank:
                adapter.lora = with_lora(frozen, config)
            if config.gated_units:  # only these are trained then
                adapter.requires_grad_(False)
                adapter.gated_units.requires_grad_(True)
        sharded = config.shard and shard_layers(frozen.model, torch.device(device))
        decoder, head = (frozen.decoder, frozen.head) if isinstance(frozen, SharedLlm) \
            else frozen.runner(config, positions, device, sharded)
        self._assemble(config, frozen, decoder, head, adapter, device)
        self.row_width, self.sharded = row_width, sharded

    def _assemble(self, config: SpeakerConfig, frozen: FrozenModel, decoder: HfDecoder | LlamaDecoder, head: Head,
                  adapter: nn.Module, device: str | torch.device) -> None:
        """Take a frozen model, what runs it, and the adapter in front of it."""
        self.config, self.frozen, self.head, self.llm = config, frozen, head, frozen.model
        self.decoder: Decoder = decoder
        self.tokenizer, self.eos, self.start = frozen.tokenizer, frozen.eos, frozen.start
        self.llm_width, self.sharded = frozen.width, False
        self.trained: nn.Module = adapter.to(device)
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        self.check_every = 1 if on_cpu else 4  # asking a GPU which captions are finished waits for it
        self.micro_batch = MICRO_BATCH if on_cpu else GPU_BATCH

    # --- one batch ---

    def prefill(self, prefix: Float[Tensor, "B K D"]) -> Prefilled:
        """Run start token and prefix, once per image; the cache and the last hidden states.

        The start token serves as attention sink. Without it the first prefix vector does, and gradients explode
        (measured: prefix gradient norm 6,700 against 40, and bfloat16 gradients point elsewhere).
        """
        start = self.llm.get_input_embeddings()(torch.full((len(prefix), 1), self.start, device=prefix.device))
        return self.decoder.prefill(torch.cat([start, prefix.to(start.dtype)], dim=1))

    @torch.no_grad()
    def sample(self, prefix: Float[Tensor, "B K D"], uniforms: Float[Tensor, "S most"] | None = None,
               temperature: float = 1.0, run: Prefilled | None = None) -> Captions:
        """Captions by inverse-CDF sampling from `uniforms`, or greedily where it is None (then N = 1). `run` is what
        `prefill` gave for the prefix, where it has run already.

        Returns tokens (S, T'), a mask that covers each caption with its end token, and the log-probability
        of each token (at this temperature); T' <= T is the longest caption's length. Every `check_every` tokens
        finished captions are dropped from the batch; with a static cache all stay until the last one is finished.
        """
        count, most = uniforms.shape if uniforms is not None else (len(prefix), self.config.max_tokens)
        going = torch.arange(count, device=prefix.device)  # the captions in the batch
        cache, hidden = run or self.prefill(prefix)
        image = going // (count // len(prefix))
        cache, hidden = self.decoder.expand(cache, image, room=most), hidden[image]
        tokens = torch.full((count, most), self.eos, device=prefix.device)
        logps = torch.zeros(count, most, device=prefix.device)
        ended = torch.zeros(count, dtype=torch.bool, device=prefix.device)
        for t in range(most):
            logits = _scaled(self.decoder.logits(hidden), temperature)
            token, logp = sample_token(logits, None if uniforms is None else uniforms[going, t])
            tokens[going, t], logps[going, t] = token, logp
            if t == most - 1:
                break
            ended[going] |= token == self.eos
            if (t + 1) % self.check_every == 0:
                keep = (~ended[going]).nonzero().squeeze(1)
                if not self._max_count(len(keep)):
                    break
                if 0 < len(keep) < len(going) and not self.decoder.static:
                    going, token = going[keep], token[keep]
                    cache = self.decoder.select(cache, keep)
            hidden = self.decoder.extend(cache, token[:, None])[:, -1]
        ends = (tokens == self.eos).int()
        mask = ends.cumsum(1) == ends  # up to the first end token
        longest = int(mask.sum(1).max())
        return tokens.masked_fill(~mask, self.eos)[:, :longest], mask[:, :longest], (logps * mask)[:, :longest]

    @torch.no_grad()
    def next_logp(self, prefix: Float[Tensor, "S K D"], tokens: Int[Tensor, "S t"]) -> Float[Tensor, "S V"]:
        """Log-probabilities of the token that follows the prefix and t given tokens (t may be 0)."""
        cache, hidden = self.prefill(prefix)
        if tokens.shape[1]:
            rows = torch.arange(len(prefix), device=prefix.device)
            hidden = self.decoder.extend(self.decoder.select(cache, rows, room=tokens.shape[1]), tokens)[:, -1]
        return self.decoder.logits(hidden).float().log_softmax(-1)

    def logprobs(self, prefix: Float[Tensor, "B K D"], tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"],
                 temperature: float = 1.0, run: Prefilled | None = None) -> Float[Tensor, "S T"]:
        """Log-probability of given tokens (0 where masked), with gradients to the prefix.

        The prefix runs once per image, or not at all where `run` is given (see `sample`), and equal captions of an
        image once; captions of similar length run together; only hidden states that predict a real token are multiplied
        by the vocabulary. Use it where gradients (the update) or another prefix (the KL cost) are needed: `sample`
        returns the log-probabilities of its own captions, and the update's forward pass gives PPO's old ones.
        """
        image = torch.arange(len(tokens), device=tokens.device) // (len(tokens) // len(prefix))
        unique, place = torch.cat([image[:, None], tokens.masked_fill(~mask, -1)], 1).unique(dim=0, return_inverse=True)
        image, tokens = unique[:, 0], unique[:, 1:]
        longest = tokens.shape[1]
        if self.sharded:  # every micro-batch must have a token to run
            tokens = F.pad(tokens, (0, 1), value=-1)
        mask = tokens >= 0
        cache, first = run or self.prefill(prefix)
        order = mask.sum(1).argsort(stable=True)
        more = self._max_count(len(order)) - len(order)  # captions that are run again and not used
        parts = []
        for rows in torch.cat([order, order[-1:].expand(more)]).split(self.micro_batch):
            length = max(int(mask[rows].sum(1).max()), 1 + self.sharded)
            target, real = tokens[rows, :length], mask[rows, :length]
            hidden = first[image[rows], None]
            if length > 1:
                body = self.decoder.extend(self.decoder.select(cache, image[rows], room=length - 1),
                                           target[:, :-1].clamp(min=0))
                hidden = torch.cat([hidden, body], dim=1)
            picked = self.head.token_logp(hidden[real], target[real], temperature)
            row = torch.zeros(real.shape, device=picked.device).masked_scatter(real, picked)
            parts.append(F.pad(row, (0, longest - length)))
        return torch.cat(parts)[order.argsort()][place]

    def _max_count(self, count: int) -> int:
        """The largest count over processes that shard the LLM, because all must run it equally often."""
        return max_over_processes(count, self.device) if self.sharded else count

    @torch.no_grad()
    def perplexity_logp(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> Float[Tensor, "S T"]:
        """Log-probability of captions under the LLM alone: the start token and no prefix."""
        nothing = torch.empty(len(tokens), 0, self.llm_width, device=tokens.device)
        return self.logprobs(nothing, tokens, mask)

    # --- text ---

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each caption, ended by the end token and cut at `max_tokens`."""
        return [ids[: self.config.max_tokens - 1] + [self.eos]
                for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def encode(self, texts: list[str]) -> tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"]]:
        """`token_rows` padded with the end token, and their mask."""
        rows = self.token_rows(texts)
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self.eos)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return tokens.to(self.device), mask.to(self.device)

    def decode(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> list[str]:
        """Captions as text, without special tokens and the end token, which need not be one."""
        rows = [row[keep].tolist() for row, keep in zip(tokens, mask & (tokens != self.eos), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def caption(self, patches: Float[Tensor, "B P Dv"], samples: int = 0, temperature: float = 1.0,
                seed: int = 0, audience: Float[Tensor, "B c"] | None = None) -> list[list[str]]:
        """Captions of images: for each image the greedy one, then `samples` sampled ones."""
        prefix = self.trained(patches.to(self.device), audience)
        columns = [self.decode(*self.sample(prefix)[:2])]
        if samples:
            draws = torch.rand(len(patches) * samples, self.config.max_tokens,
                               generator=torch.Generator().manual_seed(seed)).to(self.device)
            texts = self.decode(*self.sample(prefix, draws, temperature)[:2])
            columns += [texts[i::samples] for i in range(samples)]
        return [list(row) for row in zip(*columns, strict=True)]
