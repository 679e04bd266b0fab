"""The speaker: CLIP patches -> attention adapter -> start token and K prefix vectors -> frozen LLM -> caption.

Only the adapter (and LoRA, if asked for) is trained. Captions are sampled from given uniform draws, so the
same draws give the same captions on any number of processes. A prefix is run once per image and its
key-value cache is shared by the image's N captions, in sampling and in the update (where the cache carries
gradients).

Leaves out beam search and any prompt text: the prefix alone conditions the LLM.

Shapes: B images, N captions per image, S = B*N, P patches, K prefix tokens, T caption tokens, D LLM width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from dixit.common import DixitError, first_line
from dixit.config import SpeakerConfig
from dixit.data.assets import ASSETS, asset
from dixit.models.decoder import Decoder, HfDecoder, LlamaDecoder
from dixit.models.sharding import max_over_processes, shard_layers

ROWS = 32  # captions scored together; fewer means less padding, more means wider matrix products
CHUNK = 256  # hidden states that meet the vocabulary together
WIDE = 1024  # both on a GPU, which small pieces would leave idle; all are kept for the backward pass in any case
BLOCK = 256  # of the vocabulary, in sampling
Captions = tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"], Float[Tensor, "S T"]]  # tokens, mask, log-probs


class Block(nn.Module):
    """Queries look at the patches, then at each other (pre-norm)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_cross, self.norm_self, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_ = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, q: Float[Tensor, "B K W"], patches: Float[Tensor, "B P W"]) -> Float[Tensor, "B K W"]:
        q = q + self.cross(self.norm_cross(q), patches, patches, need_weights=False)[0]
        x = self.norm_self(q)
        q = q + self.self_(x, x, x, need_weights=False)[0]
        return q + self.mlp(self.norm_mlp(q))


def held(name: str) -> str:
    """The buffer of Units that remembers a parameter."""
    return "held_" + name.replace(".", "_")


class GatedUnits(nn.Module):
    """Hidden units behind a block, which the context may make active for one audience and silent for another.

    They add nothing at first. What their buffers are for, and how else they are kept from forgetting: continual.py.
    """

    importance: Tensor

    def __init__(self, width: int, units: int, context: int):
        super().__init__()
        self.inputs = nn.Linear(width, units)
        self.gate = nn.Linear(context, units, bias=False)
        self.relu = nn.ReLU()
        self.outputs = nn.Linear(units, width, bias=False)
        nn.init.normal_(self.gate.weight, std=0.1)
        nn.init.zeros_(self.outputs.weight)
        self.register_buffer("importance", torch.zeros(units))
        for name, parameter in list(self.named_parameters()):
            self.register_buffer(held(name), torch.zeros_like(parameter))

    def forward(self, q: Float[Tensor, "B K W"], context: Float[Tensor, "B c"]) -> Float[Tensor, "B K W"]:
        x = F.layer_norm(q, q.shape[-1:])
        return self.outputs(self.relu(self.inputs(x) + self.gate(context)[:, None]))


class Adapter(nn.Module):
    """Learned queries attend to the patches and become K prefix vectors at the LLM's embedding scale.

    `topics` (B, c / 2) optionally say what to name: 1 for an attribute that is wanted, -1 for one that is not, 0 for
    either; captions teach what they mean. `context` (B, c) optionally tells of the listeners: tanh of its affine map,
    0 at first, is the topics, and that map is all that the game trains. With `config.units` the context drives a layer
    of units behind each block instead. Without topics and context all of this is left out.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, llm_width: int, scale: float):
        super().__init__()
        width = config.width
        self.inputs = nn.Sequential(nn.Linear(patch_width, width), nn.LayerNorm(width))
        self.places = nn.Parameter(torch.randn(patches, width) * 0.2)
        # Queries and output offsets as large as what flows past them: smaller ones let all K vectors become equal.
        self.queries = nn.Parameter(torch.randn(config.prefix, width))
        self.offsets = nn.Parameter(torch.randn(config.prefix, llm_width))
        told = config.context and not config.units
        self.topics = nn.Linear(config.context // 2, width, bias=False) if told else None
        self.context = nn.Linear(config.context, config.context // 2) if told else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)
            nn.init.zeros_(self.context.bias)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, llm_width))
        self.units = nn.ModuleList(GatedUnits(width, config.units, config.context) for _ in range(config.layers)
                                   if config.units)
        self.scale = scale

    def forward(self, patches: Float[Tensor, "B P Dv"], context: Float[Tensor, "B c"] | None = None,
                topics: Float[Tensor, "B a"] | None = None) -> Float[Tensor, "B K D"]:
        keys = self.inputs(patches) + self.places
        q = self.queries.expand(len(patches), -1, -1)
        if self.context is not None and context is not None:
            topics = self.context(context).tanh()
        if self.topics is not None and topics is not None:
            q = q + self.topics(topics)[:, None]
        for i, block in enumerate(self.blocks):
            q = block(q, keys)
            if len(self.units) and context is not None:
                q = q + self.units[i](q, context)
        x = self.outputs(q) + self.offsets
        return F.layer_norm(x, x.shape[-1:]) * self.scale


def load_llm(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """A frozen causal LM and its tokenizer from an asset, a folder or a Hugging Face name.

    Raises DixitError where it cannot be had. Remote code is never run.
    """
    source = str(asset(name)) if any(name == known.name for known in ASSETS) else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        llm = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), trust_remote_code=False)
    except Exception as error:  # many kinds, each about bad input
        raise DixitError(f"cannot load the LLM '{name}': {first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise DixitError(f"the tokenizer of '{name}' has no end-of-sequence token")
    return llm.eval().requires_grad_(False), tokenizer


def _cooled(logits: Float[Tensor, "*n V"], temperature: float) -> Float[Tensor, "*n V"]:
    """Logits over the temperature, in float32; in place where they are that already."""
    warm = logits.float()
    return warm if temperature == 1 else warm.div_(temperature)


def pick(logits: Float[Tensor, "S V"],
         uniforms: Float[Tensor, "S"] | None) -> tuple[Int[Tensor, "S"], Float[Tensor, "S"]]:
    """Tokens by inverse CDF from `uniforms` in [0, 1], or the likeliest ones; and their log-probabilities.

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


class TokenLogp(torch.autograd.Function):
    """log softmax(head(hidden) / temperature)[token] for a frozen head, without keeping an (n, V) tensor.

    The gradient with respect to the hidden state, (W[token] - p @ W) / temperature, is made in the forward pass,
    while the logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Float[Tensor, "n D"], weight: Float[Tensor, "V D"], bias: Tensor | None,
                tokens: Int[Tensor, "n"], temperature: float) -> Float[Tensor, "n"]:
        # Buffers are made once, for fresh memory is slow on a CPU; the float32 one is small enough for its cache.
        chunk, rows = (CHUNK, ROWS) if weight.device.type == "cpu" else (WIDE, WIDE)
        logits = torch.empty(chunk, len(weight), dtype=weight.dtype, device=weight.device)
        wide = torch.empty(rows, len(weight), dtype=torch.float32, device=weight.device)
        picked, slopes = [], []
        for h, token in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            narrow = logits[:len(h)]
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
                part.copy_(p)
            if ctx.needs_input_grad[0]:
                mean = torch.mm(narrow, weight) / torch.cat(totals).to(weight.dtype)
                slopes.append((weight[token] - mean) / temperature)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(picked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None, None


class Speaker:
    """A trainable `adapter` in front of a frozen LLM.

    `trained` is the module that holds exactly the trained parameters (adapter, and LoRA's); its forward is
    the adapter's. It may be replaced by a wrapped (distributed) version of itself.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, seed: int = 0,
                 device: str | torch.device = "cpu"):
        self.config = config
        self.llm, self.tokenizer = load_llm(config.llm, config.dtype)
        embedding = self.llm.get_input_embeddings().weight
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter = Adapter(config, patches, patch_width, embedding.shape[1], float(embedding.float().std()))
            if config.lora_rank:
                from peft import LoraConfig, get_peft_model
                self.llm = get_peft_model(self.llm, LoraConfig(
                    r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=["q_proj", "v_proj"]))
                lora = {n.replace(".", "_"): p for n, p in self.llm.named_parameters() if p.requires_grad}
                adapter.lora = nn.ParameterDict(lora)
            if config.units:  # all that is trained then
                adapter.requires_grad_(False)
                adapter.units.requires_grad_(True)
        self.sharded = config.shard and shard_layers(self.llm, torch.device(device))
        self.llm.to(device)
        fits = LlamaDecoder.fits(self.llm) and not self.sharded
        if config.compile == "yes" and not fits:
            raise DixitError(f"speaker.compile yes is for LLMs of the Llama family without LoRA; '{config.llm}' with "
                             f"lora_rank {config.lora_rank} is none: use auto")
        self.decoder: Decoder = LlamaDecoder(self.llm, config.compile) if fits else HfDecoder(self.llm)
        self.trained: nn.Module = adapter.to(device)
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        self.check_every = 1 if on_cpu else 4  # to ask a GPU who is finished, one must wait for it
        self.rows = ROWS if on_cpu else WIDE
        self.eos = int(self.tokenizer.eos_token_id)
        self.start = self.eos if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    # --- one batch ---

    def _prefill(self, prefix: Float[Tensor, "B K D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run start token and prefix, once per image; the cache and the last hidden states.

        The start token takes the role of attention sink. Without it the first prefix vector must, and gradients
        explode (measured: prefix gradient norm 6,700 against 40, and bfloat16 gradients point elsewhere).
        """
        start = self.llm.get_input_embeddings().weight[self.start].expand(len(prefix), 1, -1)
        return self.decoder.start(torch.cat([start, prefix.to(start.dtype)], dim=1))

    @torch.no_grad()
    def sample(self, prefix: Float[Tensor, "B K D"], uniforms: Float[Tensor, "S most"] | None = None,
               temperature: float = 1.0) -> Captions:
        """Captions by inverse-CDF sampling from `uniforms`, or greedily where it is None (then N = 1).

        Returns tokens (S, T'), a mask that covers each caption with its end token, and the log-probability
        of each token (at this temperature); T' <= T is the longest caption's length. Every `check_every` tokens
        finished captions are dropped from the batch; where the decoder's memory is fixed, all stay until all have.
        """
        count, most = uniforms.shape if uniforms is not None else (len(prefix), self.config.max_tokens)
        going = torch.arange(count, device=prefix.device)  # the captions in the batch
        cache, hidden = self._prefill(prefix)
        image = going // (count // len(prefix))
        cache, hidden = self.decoder.begin(cache, image, room=most), hidden[image]
        tokens = torch.full((count, most), self.eos, device=prefix.device)
        logps = torch.zeros(count, most, device=prefix.device)
        ended = torch.zeros(count, dtype=torch.bool, device=prefix.device)
        for t in range(most):
            logits = _cooled(self.decoder.logits(hidden), temperature)
            token, logp = pick(logits, None if uniforms is None else uniforms[going, t])
            tokens[going, t], logps[going, t] = token, logp
            if t == most - 1:
                break
            ended[going] |= token == self.eos
            if (t + 1) % self.check_every == 0:
                keep = (~ended[going]).nonzero().squeeze(1)
                if not self._most(len(keep)):
                    break
                if 0 < len(keep) < len(going) and not self.decoder.fixed:
                    going, token = going[keep], token[keep]
                    cache = self.decoder.take(cache, keep)
            hidden = self.decoder.extend(cache, token[:, None])[:, -1]
        ends = (tokens == self.eos).int()
        mask = ends.cumsum(1) == ends  # up to the first end token
        longest = int(mask.sum(1).max())
        return tokens.masked_fill(~mask, self.eos)[:, :longest], mask[:, :longest], (logps * mask)[:, :longest]

    @torch.no_grad()
    def next_logp(self, prefix: Float[Tensor, "S K D"], tokens: Int[Tensor, "S t"]) -> Float[Tensor, "S V"]:
        """Log-probabilities of the token that follows the prefix and t given tokens (t may be 0)."""
        cache, hidden = self._prefill(prefix)
        if tokens.shape[1]:
            rows = torch.arange(len(prefix), device=prefix.device)
            hidden = self.decoder.extend(self.decoder.take(cache, rows, room=tokens.shape[1]), tokens)[:, -1]
        return self.decoder.logits(hidden).float().log_softmax(-1)

    def logprobs(self, prefix: Float[Tensor, "B K D"], tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"],
                 temperature: float = 1.0) -> Float[Tensor, "S T"]:
        """Log-probability of given tokens (0 where masked), with gradients to the prefix.

        The prefix runs once per image and equal captions of an image once; captions of like length run together;
        only hidden states that predict a real token reach the vocabulary. Captions are scored only where gradients (the
        update) or another prefix (the cost of KL) ask for it: `sample` gives the log-probabilities of its own, and
        what the update's forward pass found serves as PPO's old ones.
        """
        image = torch.arange(len(tokens), device=tokens.device) // (len(tokens) // len(prefix))
        unique, place = torch.cat([image[:, None], tokens.masked_fill(~mask, -1)], 1).unique(dim=0, return_inverse=True)
        image, tokens = unique[:, 0], unique[:, 1:]
        longest = tokens.shape[1]
        if self.sharded:  # so that each part has a token to run
            tokens = F.pad(tokens, (0, 1), value=-1)
        mask = tokens >= 0
        cache, first = self._prefill(prefix)
        head = self.llm.get_output_embeddings()
        order = mask.sum(1).argsort(stable=True)
        more = self._most(len(order)) - len(order)  # rows that are run again and not used
        parts = []
        for rows in torch.cat([order, order[-1:].expand(more)]).split(self.rows):
            length = max(int(mask[rows].sum(1).max()), 1 + self.sharded)
            target, real = tokens[rows, :length], mask[rows, :length]
            hidden = first[image[rows], None]
            if length > 1:
                body = self.decoder.extend(self.decoder.take(cache, image[rows], room=length - 1),
                                           target[:, :-1].clamp(min=0))
                hidden = torch.cat([hidden, body], dim=1)
            picked = TokenLogp.apply(hidden[real], head.weight, head.bias, target[real], temperature)
            row = torch.zeros(real.shape, device=picked.device).masked_scatter(real, picked)
            parts.append(F.pad(row, (0, longest - length)))
        return torch.cat(parts)[order.argsort()][place]

    def _most(self, count: int) -> int:
        """The largest count of all processes that share the LLM: they must run it equally often."""
        return max_over_processes(count, self.device) if self.sharded else count

    @torch.no_grad()
    def perplexity_logp(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> Float[Tensor, "S T"]:
        """Log-probability of captions under the LLM alone: the start token and no prefix."""
        nothing = torch.empty(len(tokens), 0, self.llm.config.hidden_size, device=tokens.device)
        return self.logprobs(nothing, tokens, mask)

    # --- text ---

    def encode(self, texts: list[str]) -> tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"]]:
        """Tokens of captions, each ended by the end token and cut at `max_tokens`, and their mask."""
        rows = [ids[: self.config.max_tokens - 1] + [self.eos]
                for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self.eos)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return tokens.to(self.device), mask.to(self.device)

    def decode(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> list[str]:
        """Captions as text, without special tokens."""
        rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def caption(self, patches: Float[Tensor, "B P Dv"], samples: int = 0, temperature: float = 1.0,
            seed: int = 0, context: Float[Tensor, "B c"] | None = None) -> list[list[str]]:
        """Captions of images: the greedy one, then `samples` sampled ones, for each image."""
        prefix = self.trained(patches.to(self.device), context)
        columns = [self.decode(*self.sample(prefix)[:2])]
        if samples:
            draws = torch.rand(len(patches) * samples, self.config.max_tokens,
                               generator=torch.Generator().manual_seed(seed)).to(self.device)
            texts = self.decode(*self.sample(prefix, draws, temperature)[:2])
            columns += [texts[i::samples] for i in range(samples)]
        return [list(row) for row in zip(*columns, strict=True)]
