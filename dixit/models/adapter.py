"""The attention adapter: learned queries attend to CLIP patches and become K prefix vectors for the LLM.

It may take the audience as a further input: as observed picks, which say which attributes to name, or as a code that
switches gated hidden units on and off. The adapter of a vision-language model changes its vision tokens instead.

Shapes: B images, P patches, Dv patch width, W adapter width, K prefix tokens, D LLM width, c audience width,
a attributes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.config import SpeakerConfig
from dixit.models.named import row_count


class Block(nn.Module):
    """Cross-attention of the queries to the patches, self-attention among the queries, MLP (all pre-norm)."""

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


def anchor_name(name: str) -> str:
    """The buffer of GatedUnits that keeps the value from which a parameter is penalised for moving."""
    return "anchor_" + name.replace(".", "_")


class GatedUnits(nn.Module):
    """Hidden units behind a block, which the audience's code makes active for one audience and silent for another.

    Their output is 0 at first. `importance` and the anchors are for the penalty that keeps units from forgetting (see
    training/continual.py).
    """

    importance: Tensor

    def __init__(self, width: int, units: int, code_width: int):
        super().__init__()
        self.inputs = nn.Linear(width, units)
        self.gate = nn.Linear(code_width, units, bias=False)
        self.relu = nn.ReLU()
        self.outputs = nn.Linear(units, width, bias=False)
        nn.init.normal_(self.gate.weight, std=0.1)
        nn.init.zeros_(self.outputs.weight)
        self.register_buffer("importance", torch.zeros(units))
        for name, parameter in list(self.named_parameters()):
            self.register_buffer(anchor_name(name), torch.zeros_like(parameter))

    def forward(self, q: Float[Tensor, "B K W"], code: Float[Tensor, "B c"]) -> Float[Tensor, "B K W"]:
        x = F.layer_norm(q, q.shape[-1:])
        return self.outputs(self.relu(self.inputs(x) + self.gate(code)[:, None]))


class Adapter(nn.Module):
    """Learned queries attend to the patches and become K prefix vectors at the scale of the LLM's embeddings.

    `attributes` (B, a), optional, says which attributes to name: 1 for a requested one, -1 for one that is not to be
    named, 0 for either. `audience` (B, c), optional, describes the listeners; tanh of an affine map of it, 0 at first,
    is used as `attributes`, and that map is all that the game trains. With `config.gated_units` the audience drives a
    layer of gated units behind each block instead.

    With `row_width` the last patches are none, but an image embedding of that width (models/named.py). A projection of
    it is added to every query.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, llm_width: int, scale: float,
                 row_width: int = 0):
        super().__init__()
        width, self.row_width, self.rows = config.width, row_width, row_count(row_width, patch_width)
        self.inputs = nn.Sequential(nn.Linear(patch_width, width), nn.LayerNorm(width))
        self.image = nn.Linear(row_width, width) if row_width else None
        self.positions = nn.Parameter(torch.randn(patches - self.rows, width) * 0.2)
        # Queries and offsets are as large as what they are added to: smaller ones let all K vectors become equal.
        self.queries = nn.Parameter(torch.randn(config.prefix, width))
        self.offsets = nn.Parameter(torch.randn(config.prefix, llm_width))
        by_picks = config.audience_width and not config.gated_units
        self.attributes = nn.Linear(config.audience_width // 2, width, bias=False) if by_picks else None
        self.audience = nn.Linear(config.audience_width, config.audience_width // 2) if by_picks else None
        if self.audience is not None:
            nn.init.zeros_(self.audience.weight)
            nn.init.zeros_(self.audience.bias)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, llm_width))
        self.gated_units = nn.ModuleList(GatedUnits(width, config.gated_units, config.audience_width)
                                         for _ in range(config.layers) if config.gated_units)
        self.scale = scale

    def forward(self, patches: Float[Tensor, "B P Dv"], audience: Float[Tensor, "B c"] | None = None,
                attributes: Float[Tensor, "B a"] | None = None) -> Float[Tensor, "B K D"]:
        patches, rows = patches.split([patches.shape[1] - self.rows, self.rows], 1)
        keys = self.inputs(patches) + self.positions
        q = self.queries.expand(len(patches), -1, -1)
        if self.image is not None:
            q = q + self.image(rows.flatten(1)[:, None, :self.row_width])
        if self.audience is not None and audience is not None:
            attributes = self.audience(audience).tanh()
        if self.attributes is not None and attributes is not None:
            q = q + self.attributes(attributes)[:, None]
        for i, block in enumerate(self.blocks):
            q = block(q, keys)
            if len(self.gated_units) and audience is not None:
                q = q + self.gated_units[i](q, audience)
        x = self.outputs(q) + self.offsets
        return F.layer_norm(x, x.shape[-1:]) * self.scale


class TokenAdapter(nn.Module):
    """Adds to the vision tokens of a vision-language model what attention among them gives; at first that is 0.

    It is added in units of the standard deviation of the image's tokens, which differs between models.
    """

    def __init__(self, config: SpeakerConfig, token_width: int):
        super().__init__()
        width = config.width
        self.inputs = nn.Sequential(nn.Linear(token_width, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        last = nn.Linear(width, token_width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.outputs = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, patches: Float[Tensor, "B P D"], audience: None = None) -> Float[Tensor, "B P D"]:
        keys = q = self.inputs(patches)
        for block in self.blocks:
            q = block(q, keys)
        return patches + self.outputs(q) * patches.std((1, 2), keepdim=True)
