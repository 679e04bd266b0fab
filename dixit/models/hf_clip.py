"""Open a CLIP in the format of transformers (`CLIPModel`) as an open_clip model with the same weights.

Leaves out SigLIP and other models of transformers: open_clip has copies of most of them in its own format.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

PARTS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
         "self_attn.out_proj": "attn.out_proj"}


def open_clip_config(config: CLIPConfig, preprocessor: dict[str, Any]) -> dict[str, Any]:
    """open_clip's config of a CLIP of transformers. Raises ValueError for what open_clip's CLIP has not got."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    for part in (text, vision):
        if part.hidden_act not in ("quick_gelu", "gelu") or part.layer_norm_eps != 1e-5:
            raise ValueError(f"hidden_act {part.hidden_act} with layer_norm_eps {part.layer_norm_eps} is not known to "
                             "open_clip")
    if text.hidden_act != vision.hidden_act:
        raise ValueError("its towers have different activations")
    size = preprocessor.get("crop_size", preprocessor.get("size", vision.image_size))
    size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    if size != vision.image_size:
        raise ValueError(f"preprocessor_config.json gives images of {size} pixels, the tower takes {vision.image_size}")
    resample = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(preprocessor.get("resample", 3), "bicubic")
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim, "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": {"image_size": vision.image_size, "patch_size": vision.patch_size,
                           "layers": vision.num_hidden_layers, "width": vision.hidden_size,
                           "head_width": vision.hidden_size // vision.num_attention_heads,
                           "mlp_ratio": vision.intermediate_size / vision.hidden_size},
            "text_cfg": {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size,
                         "width": text.hidden_size, "heads": text.num_attention_heads,
                         "layers": text.num_hidden_layers, "mlp_ratio": text.intermediate_size / text.hidden_size}},
        "preprocess_cfg": {"size": size, "mean": preprocessor.get("image_mean", list(open_clip.OPENAI_DATASET_MEAN)),
                           "std": preprocessor.get("image_std", list(open_clip.OPENAI_DATASET_STD)),
                           "interpolation": resample, "resize_mode": "shortest"}}


def open_clip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `CLIPModel` under open_clip's names; projections of queries, keys and values are one there."""
    made = {"logit_scale": weights["logit_scale"], "text_projection": weights["text_projection.weight"].T,
            "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
            "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
            "visual.proj": weights["visual_projection.weight"].T,
            "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
            "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
            "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"]}
    for old, new in (("text_model.final_layer_norm", "ln_final"), ("vision_model.pre_layrnorm", "visual.ln_pre"),
                     ("vision_model.post_layernorm", "visual.ln_post")):
        made |= {f"{new}.{end}": weights[f"{old}.{end}"] for end in ("weight", "bias")}
    for tower, place in (("text_model", ""), ("vision_model", "visual.")):
        layers = {int(name.split(".")[3]) for name in weights if name.startswith(f"{tower}.encoder.layers.")}
        for layer in layers:
            old, new = f"{tower}.encoder.layers.{layer}", f"{place}transformer.resblocks.{layer}"
            for end in ("weight", "bias"):
                made[f"{new}.attn.in_proj_{end}"] = torch.cat(
                    [weights[f"{old}.self_attn.{part}_proj.{end}"] for part in "qkv"])
                made |= {f"{new}.{b}.{end}": weights[f"{old}.{a}.{end}"] for a, b in PARTS.items()}
    return {name: value.contiguous() for name, value in made.items()}


def open_hf_clip(folder: Path, device: str | torch.device) -> tuple[Any, Any, dict[str, Any]]:
    """The open_clip model, its tokenizer and its `model_cfg`. Raises ValueError for what cannot be taken over."""
    file = folder / "preprocessor_config.json"
    preprocessor = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    source: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    config = open_clip_config(source.config, preprocessor)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
        model: Any = open_clip.create_model(f"local-dir:{place}", load_weights=False, device=device)
    model.load_state_dict(open_clip_weights(source.state_dict()))
    context = source.config.text_config.max_position_embeddings
    return model, open_clip.tokenizer.HFTokenizer(str(folder), context_length=context), config["model_cfg"]
