"""Forward passes of the frozen LLM: a prefix once per image, then caption tokens after a shared key-value cache.

Two decoders with the same methods: `HfDecoder` runs any Hugging Face causal LM with a cache of keys and values (of a
sliding window too), `LlamaDecoder` runs the Llama family (SmolLM2 included) with fewer and wider operations: one
product for queries, keys and values, one for gate and up, one cache tensor for all layers, no expanded keys. It uses
the same weights and gives the same numbers (tests compare the two). Gradients flow through the cache to the prefix,
never to the LLM.

Sampling repeats one small step, and a GPU would spend it on launching a thousand kernels. There `LlamaDecoder` keeps a
static cache and records the step once as a CUDA graph; with `compile="yes"` torch.compile fuses the operations of a
layer, in sampling and in the update, at the price of a slower start. A CPU has no launches to save: there finished
captions are dropped from the batch instead.

Leaves out left padding, a static cache and branches for `HfDecoder`; in `LlamaDecoder` sliding windows, biases, and
adapters inside the LLM.

Shapes: S captions, t new tokens, p tokens in the cache, D LLM width, H key-value heads, G query heads for each of
them, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.models.half import is_widened, product, wide_product
from dixit.models.head import Head, body_name
from dixit.models.llm import max_positions

MAX_STATIC_CACHES = 4  # batch shapes whose static cache is kept
POSITIONS = 1024  # whose rotations are kept, unless the LLM has fewer or captions need more


class Tree(NamedTuple):
    """How tokens after a cache branch, where a row holds several texts and what they begin with in common only once."""

    depth: Int[Tensor, "S t"]  # tokens between the cache and each token on its branch
    sees: Bool[Tensor, "S t t"]  # [s, i, j]: whether token i comes after j on its branch, or is j


class Decoder(Protocol):
    """What the speaker needs of an LLM. A cache is opaque: it is only passed back to the decoder that made it."""

    static: bool  # whether `expand` returns a static cache, from which finished captions cannot be dropped
    branches: bool  # whether `extend` takes a tree

    def prefill(self, inputs: Float[Tensor, "B p D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run a prefix; returns its cache and the last hidden states. Differentiable where gradients are on."""

    def select(self, cache: Any, index: Int[Tensor, "S"], room: int = 0) -> Any:
        """A copy of the cache with one entry for each of `index` and `room` for further tokens; differentiable."""

    def expand(self, cache: Any, index: Int[Tensor, "S"], room: int) -> Any:
        """The same without gradients, for sampling one token at a time; valid until the next `expand`."""

    def join(self, caches: list[Any]) -> Any:
        """One cache of several of equal length, side by side."""

    def extend(self, cache: Any, tokens: Int[Tensor, "S t"], tree: Tree | None = None) -> Float[Tensor, "S t D"]:
        """Run tokens after the cache; returns their hidden states. Without gradients the cache then holds them too, and
        after a tree it cannot be extended again."""

    def size(self, cache: Any) -> int:
        """The bytes of a cache."""

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        """Logits over the vocabulary, without gradients."""


class HfDecoder:
    """Any Hugging Face causal LM; its own code makes and fills the cache."""

    static = branches = False

    def __init__(self, llm: Any):
        plain = llm.get_base_model() if hasattr(llm, "get_base_model") else llm  # with LoRA
        self.body, self.head = getattr(plain, body_name(plain)), Head(llm)
        if next(llm.parameters()).device.type == "cpu":
            # Captions are so short that plain attention beats the fused kernel (measured: update 1.4 times as fast).
            llm.set_attn_implementation("eager")

    def _run(self, **inputs: Any) -> tuple[Any, Float[Tensor, "S t D"]]:
        outputs = self.body(use_cache=True, **inputs)
        return getattr(outputs, "past_key_values", None), outputs.last_hidden_state

    def prefill(self, inputs: Float[Tensor, "B p D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        cache, hidden = self._run(inputs_embeds=inputs)  # the model makes the cache, of the kind that its layers need
        return cache, hidden[:, -1]

    @staticmethod
    def _tensors(layer: Any) -> dict[str, Tensor]:
        """Keys, values and the like of a layer's cache: every tensor has the captions first; a number beside them says
        how much a window has seen."""
        return {name: part for name, part in vars(layer).items() if isinstance(part, Tensor) and part.dim() > 1}

    def select(self, cache: Any, index: Int[Tensor, "S"], room: int = 0) -> Any:
        taken = copy.copy(cache)
        taken.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in taken.layers:
            vars(layer).update({name: part[index] for name, part in self._tensors(layer).items()})
        return taken

    expand = select

    def join(self, caches: list[Any]) -> Any:
        joined = copy.copy(caches[0])
        joined.layers = [copy.copy(layer) for layer in joined.layers]
        for layer, *parts in zip(joined.layers, *(cache.layers for cache in caches), strict=True):
            vars(layer).update({name: torch.cat([vars(part)[name] for part in parts]) for name in self._tensors(layer)})
        return joined

    def extend(self, cache: Any, tokens: Int[Tensor, "S t"], tree: Tree | None = None) -> Float[Tensor, "S t D"]:
        assert tree is None
        return self._run(past_key_values=cache, input_ids=tokens)[1]

    def size(self, cache: Any) -> int:
        return sum(part.nbytes for layer in cache.layers for part in self._tensors(layer).values())

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        return self.head.logits(hidden)

    def shortened(self, layers: int) -> HfDecoder:
        """The decoder of the LLM while it is cut to its first layers."""
        return self


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight in float32 inside, as Hugging Face's; the gradient to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        slope, unit = (grads[0] * weight).float(), x.float().mul_(scale)
        inner = (slope * unit).mean(-1, keepdim=True)
        return (slope - unit.mul_(inner)).mul_(scale).to(x.dtype), None, None


def _rms_norm(x: Float[Tensor, "S t D"], weight: Float[Tensor, "D"], epsilon: float) -> Float[Tensor, "S t D"]:
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, epsilon)
    return F.rms_norm(x, weight.shape, weight, epsilon)  # fewer operations


def _packed_product(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"], packed: Tensor) -> Float[Tensor, "*n E"]:
    """x @ weight.T with a weight in oneDNN's own layout, or in float32 (half.py)."""
    if is_widened(x, weight):
        return wide_product(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class _PackedProduct(torch.autograd.Function):
    """`_packed_product` with the gradient to x alone, by the plain weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: Tensor) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight)
        return _packed_product(x, weight, packed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return product(grads[0], ctx.saved_tensors[0].t()), None, None


class _Product:
    """A frozen linear map without bias.

    On a CPU bfloat16 weights are also kept in oneDNN's packed layout, as torch.compile does when it freezes a model:
    without it every product packs the weight again (measured: 1.4 times as long for 32 captions). Weights of 8 or 4
    bits were slower (2.3 to 3.1 times as long for 32 captions of SmolLM2-135M; 4 bits were faster for a single caption
    only). With inputs rounded to 8 bits too, products were 1.7 times as fast, but one range is taken for the whole
    batch, so that a caption's probability would depend on the others, and gradients would not be of what was computed.
    """

    def __init__(self, *modules: Any):
        """The modules' weights side by side; each module keeps a view of its own, so that memory does not grow."""
        self.weight = modules[0].weight.detach()
        if len(modules) > 1:
            self.weight = torch.cat([m.weight.detach() for m in modules])
            for module, part in zip(modules, self.weight.split([len(m.weight) for m in modules]), strict=True):
                module.weight.data = part
        self.packed = None
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.bfloat16 \
                and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 128)

    def __call__(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        if self.packed is None:
            return F.linear(x, self.weight)
        run = _PackedProduct.apply if torch.is_grad_enabled() else _packed_product
        return run(x, self.weight, self.packed)


class _Layer:
    """The weights of one Llama layer; those that read the same input are one."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _Product(attention.o_proj)
        self.gate_up = _Product(mlp.gate_proj, mlp.up_proj)
        self.down = _Product(mlp.down_proj)
        self.norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight


class _Cache:
    """Keys and values of all layers (2, layers, S, H, room, d), of which the first `length` positions are filled."""

    def __init__(self, keys_values: Tensor, length: int):
        self.keys_values, self.length = keys_values, length


class _StaticCache:
    """A cache at a fixed address for S captions that are sampled one token at a time, and the step that extends it.

    The step attends to the whole cache and masks what is not filled yet. The number of filled positions is the tensor
    `position`, which the step increments itself: nothing else changes from token to token, so that the step can be
    recorded as a CUDA graph.
    """

    def __init__(self, decoder: LlamaDecoder, captions: int, room: int):
        embed = decoder.embed
        shape = 2, len(decoder.layers), captions, decoder.heads, room, decoder.head_dim
        self.keys_values = decoder.cos.new_zeros(shape)
        self.tokens = torch.zeros(captions, 1, dtype=torch.long, device=embed.device)
        self.position = torch.zeros(1, dtype=torch.long, device=embed.device)  # of the next token
        self.positions = torch.arange(room, device=embed.device)

        def step() -> Float[Tensor, "S 1 D"]:
            hidden, _ = decoder._forward(F.embedding(self.tokens, embed), self)
            self.position += 1
            return hidden

        self.step = _cuda_graph(step, self.position) if embed.device.type == "cuda" else step

    def fill(self, keys_values: Float[Tensor, "2 layers S H p d"]) -> None:
        """Start again from these keys and values."""
        filled = keys_values.shape[4]
        self.keys_values[..., :filled, :] = keys_values
        self.keys_values[..., filled:, :] = 0  # a NaN of an earlier batch would pass any mask
        self.position.fill_(filled)


def _cuda_graph(step: Callable[[], Tensor], position: Tensor) -> Callable[[], Tensor]:
    """The step as a CUDA graph; its output is overwritten by the next call."""
    with torch.cuda.device(position.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # warm up: what happens once only, such as compiling, must not be recorded
            for _ in range(3):
                position.zero_()
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Calls to CUDA by other threads, such as NCCL's watchdog, are allowed.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            hidden = step()

    def replay() -> Tensor:
        graph.replay()
        return hidden

    return replay


class LlamaDecoder:
    """A Llama-family model without biases or LoRA."""

    branches = True

    def __init__(self, llm: Any, compile: str = "auto", positions: int = 0):
        """`compile` is speaker.compile; it has an effect on a GPU only. `positions` are at least to be had."""
        model, config = llm.model, llm.config
        self.embed: Tensor = model.embed_tokens.weight
        self.layers = [_Layer(layer) for layer in model.layers]
        self.head = _Product(llm.get_output_embeddings())
        self.norm, self.epsilon = model.norm.weight, config.rms_norm_eps
        self.heads = config.num_key_value_heads
        self.groups = config.num_attention_heads // self.heads
        self.head_dim = model.layers[0].self_attn.head_dim
        # No more than the limit, beyond which rotary_emb may take other frequencies for all positions.
        count = min(max(POSITIONS, positions), max_positions(config) or POSITIONS)
        # On a CPU attention is in float32: its small products in bfloat16 take three times as long there.
        dtype = torch.float32 if self.embed.device.type == "cpu" else self.embed.dtype
        cos, sin = model.rotary_emb(self.embed[:1, None].to(dtype), torch.arange(count, device=self.embed.device)[None])
        sign = torch.ones_like(sin[0, 0])
        sign[:self.head_dim // 2] = -1
        self.cos, self.sin = cos[0, :, None], sin[0, :, None] * sign  # (positions, 1, d)
        on_gpu = self.embed.device.type == "cuda"
        self.static = on_gpu and compile != "no"
        self.static_caches: dict[tuple[int, int], _StaticCache] = {}
        self.project, self.attend = self._project, self._attend
        if on_gpu and compile == "yes":  # parts of a layer, not the whole step: compiled once for all layers
            self.project, self.attend = torch.compile(self._project), torch.compile(self._attend)

    @staticmethod
    def fits(llm: Any) -> bool:
        """Whether this decoder can run the model."""
        c: Any = llm.config
        if type(llm).__name__ != "LlamaForCausalLM" or c.attention_bias or c.mlp_bias or c.hidden_act != "silu":
            return False
        products = [m for n, m in llm.named_modules() if n.endswith("_proj")]
        turned = 2 * len(llm.model.rotary_emb.inv_freq)  # of a head's dimensions
        return (all(type(m) is nn.Linear for m in products) and Head(llm).scale == 1
                and llm.get_output_embeddings().bias is None and turned == llm.model.layers[0].self_attn.head_dim)

    def shortened(self, layers: int) -> LlamaDecoder:
        """The decoder of the LLM while it is cut to its first layers; never compiled."""
        short = copy.copy(self)
        short.layers, short.project, short.attend = self.layers[:layers], self._project, self._attend
        return short

    def _project(self, layer: _Layer, x: Float[Tensor, "S t D"], cos: Float[Tensor, "*rows t 1 d"],
                 sin: Float[Tensor, "*rows t 1 d"]) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's queries (S*H, G*t, d), and keys and values (S, H, t, d) of the new tokens."""
        s, t, _ = x.shape
        h, g, d = self.heads, self.groups, self.head_dim
        mixed = layer.qkv(_rms_norm(x, layer.norms[0], self.epsilon)).to(self.cos.dtype).view(s, t, -1, d)
        turned = mixed[:, :, :-h]  # queries and keys
        turned = torch.addcmul(turned * cos, turned.roll(d // 2, -1), sin)
        query = turned[:, :, :-h].unflatten(2, (h, g)).permute(0, 2, 3, 1, 4).reshape(s * h, g * t, d)
        return query, turned[:, :, -h:].transpose(1, 2), mixed[:, :, -h:].transpose(1, 2)

    def _attend(self, layer: _Layer, x: Float[Tensor, "S t D"], query: Float[Tensor, "SH Gt d"],
                key: Float[Tensor, "S H p d"], value: Float[Tensor, "S H p d"],
                mask: Float[Tensor, "..."]) -> Float[Tensor, "S t D"]:
        """A layer's output, from its queries and all keys and values; `mask` is added to their scores (S*H, G*t, p)."""
        s, t, _ = x.shape
        scores = torch.baddbmm(mask, query, key.flatten(0, 1).transpose(1, 2), alpha=self.head_dim**-0.5)
        attended = (scores.softmax(-1) @ value.flatten(0, 1)).to(x.dtype)  # softmax sums in float32
        attended = attended.view(s, self.heads, self.groups, t, -1).permute(0, 3, 1, 2, 4).reshape(s, t, -1)
        x = x + layer.out(attended)
        gate, up = layer.gate_up(_rms_norm(x, layer.norms[1], self.epsilon)).chunk(2, -1)
        return x + layer.down(F.silu(gate) * up)

    def _forward(self, x: Float[Tensor, "S t D"], cache: _Cache | _StaticCache | None,
                 tree: Tree | None = None) -> tuple[Float[Tensor, "S t D"], list]:
        """Hidden states of the new tokens, and the keys and values of every layer."""
        t, lowest = x.shape[1], torch.finfo(self.cos.dtype).min
        if isinstance(cache, _StaticCache):
            positions, own = cache.positions, cache.position
            cos, sin = self.cos.index_select(0, own), self.sin.index_select(0, own)
        else:
            past = cache.length if cache else 0
            positions = torch.arange(past + t, device=x.device)
            own = positions[past:]
            cos, sin = self.cos[past:past + t], self.sin[past:past + t]
        if tree is not None:
            assert isinstance(cache, _Cache)
            cos, sin = self.cos[past + tree.depth], self.sin[past + tree.depth]
            mask = self.cos.new_zeros(len(x), t, past + t)
            mask[..., past:].masked_fill_(~tree.sees, lowest)
            mask = mask[:, None, None].expand(-1, self.heads, self.groups, -1, -1)
            mask = mask.reshape(-1, self.groups * t, past + t)
        elif t > 1 or isinstance(cache, _StaticCache):  # a new token sees itself and what is before it
            mask = self.cos.new_zeros(t, len(positions)).masked_fill_(positions > own[:, None], lowest)
            mask = mask.repeat(self.groups, 1)
        else:
            mask = self.cos.new_zeros(1)
        # All layers at once: the gradient of picking one layer is as large as the whole cache.
        before = [part.unbind(0) for part in cache.keys_values.unbind(0)] if cache and torch.is_grad_enabled() else []
        made = []
        for index, layer in enumerate(self.layers):
            query, key, value = self.project(layer, x, cos, sin)
            if isinstance(cache, _StaticCache):
                keys, values = cache.keys_values[:, index]
                key, value = keys.index_copy_(2, cache.position, key), values.index_copy_(2, cache.position, value)
            elif before:
                key, value = torch.cat([before[0][index], key], 2), torch.cat([before[1][index], value], 2)
            elif cache:
                cache.keys_values[0, index, :, :, past:past + t] = key
                cache.keys_values[1, index, :, :, past:past + t] = value
                key, value = cache.keys_values[:, index, :, :, :past + t]
            else:
                made.append((key, value))
            x = self.attend(layer, x, query, key, value, mask)
        return _rms_norm(x, self.norm, self.epsilon), made

    def prefill(self, inputs: Float[Tensor, "B p D"]) -> tuple[_Cache, Float[Tensor, "B D"]]:
        hidden, made = self._forward(inputs, None)
        keys_values = torch.stack([torch.stack(part) for part in zip(*made, strict=True)])
        return _Cache(keys_values, inputs.shape[1]), hidden[:, -1]

    def select(self, cache: _Cache, index: Int[Tensor, "S"], room: int = 0) -> _Cache:
        taken = cache.keys_values.index_select(2, index)
        if room and not torch.is_grad_enabled():
            taken = F.pad(taken, (0, 0, 0, room))
        return _Cache(taken, cache.length)

    def join(self, caches: list[_Cache]) -> _Cache:
        return _Cache(torch.cat([cache.keys_values for cache in caches], 2), caches[0].length)

    def size(self, cache: _Cache) -> int:
        return cache.keys_values.nbytes

    def expand(self, cache: _Cache, index: Int[Tensor, "S"], room: int) -> _Cache | _StaticCache:
        if not self.static:
            return self.select(cache, index, room)
        shape = len(index), cache.length + room
        if shape not in self.static_caches:
            if len(self.static_caches) == MAX_STATIC_CACHES:
                del self.static_caches[next(iter(self.static_caches))]
            self.static_caches[shape] = _StaticCache(self, *shape)
        self.static_caches[shape].fill(cache.keys_values.index_select(2, index))
        return self.static_caches[shape]

    def extend(self, cache: _Cache | _StaticCache, tokens: Int[Tensor, "S t"],
               tree: Tree | None = None) -> Float[Tensor, "S t D"]:
        if isinstance(cache, _StaticCache):
            cache.tokens.copy_(tokens)
            return cache.step()
        hidden, _ = self._forward(F.embedding(tokens, self.embed), cache, tree)
        if not torch.is_grad_enabled():
            cache.length += tokens.shape[1]
        return hidden

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        return self.head(hidden)
