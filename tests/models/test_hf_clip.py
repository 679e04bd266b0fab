"""A CLIP in the format of transformers gives what its CLIPModel gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from dixit.common import DixitError
from dixit.models.clip import load_clip

TEXTS = ["a red ring", "a dog", "a small blue star and a ring"]


def make(folder: Path, act: str = "quick_gelu", **vision: object) -> Path:
    words = sorted({w for text in TEXTS for w in text.split()})
    vocabulary = {w: i for i, w in enumerate(["<unk>", *words, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(t, vocabulary[t]) for t in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
                            unk_token="<unk>").save_pretrained(folder)
    shape = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, hidden_act=act)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=dict(**shape, vocab_size=len(vocabulary), max_position_embeddings=20, bos_token_id=len(words) + 1,
                         eos_token_id=len(words) + 2, pad_token_id=len(words) + 2),
        vision_config=shape | dict(image_size=32, patch_size=8) | vision, projection_dim=48)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # far from a fresh model's, where mistakes are small
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "resample": 3,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}))
    return folder


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_embeddings_and_patches_are_those_of_the_model(tmp_path, act):
    folder = make(tmp_path / "hf", act)
    clip, model = load_clip(str(folder)), CLIPModel.from_pretrained(folder)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.25]])[..., None, None]
    pixels = (images / 255 - mean) / std
    torch.testing.assert_close(clip.preprocess(images, "colour"), pixels)
    with torch.no_grad():
        seen = model.vision_model(pixels)
        image = model.visual_projection(seen.pooler_output)
        tokens = PreTrainedTokenizerFast.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
        text = model.text_projection(model.text_model(input_ids=tokens["input_ids"]).pooler_output)
    torch.testing.assert_close(clip.embed_images(images, "colour"), F.normalize(image, dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.embed_texts(TEXTS), F.normalize(text, dim=-1), atol=1e-5, rtol=1e-4)
    assert clip.patches(images, "colour").shape == (3, 16, 64)
    torch.testing.assert_close(clip.scale, float(model.logit_scale.detach().exp()))


def test_other_models_of_transformers_are_refused(tmp_path):
    folder = make(tmp_path / "hf")
    for key, value, words in (("model_type", "siglip", "model of transformers .siglip., not one of open_clip"),
                              ("model_type", "clip_x", "clip_x")):
        other = Path(shutil.copytree(folder, tmp_path / value))
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(DixitError, match=words):
            load_clip(str(other))


def test_what_open_clip_has_not_got_is_refused(tmp_path):
    with pytest.raises(DixitError, match="hidden_act relu"):
        load_clip(str(make(tmp_path / "relu", "relu")))
    with pytest.raises(DixitError, match="different activations"):
        load_clip(str(make(tmp_path / "two", "gelu", hidden_act="quick_gelu")))
    folder = make(tmp_path / "pickle")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DixitError, match="cannot load CLIP"):
        load_clip(str(folder))
