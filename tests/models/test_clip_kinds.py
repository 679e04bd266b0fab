"""Every family of open_clip models on a tiny random one: its patches, embeddings, caches and preprocessing.

Each is held against open_clip itself, which loads the same folder and gets the same pixels or tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from conftest import DATA
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from dixit.common import DixitError, rng
from dixit.config import DataConfig, ListenerConfig
from dixit.data import scenes
from dixit.data.images import load, pixels
from dixit.models import features, perception
from dixit.models.clip import fit_to_tower, load_clip
from dixit.models.features import image_embeddings, patch_features
from dixit.models.listeners import score_all
from dixit.training.runs import make_listeners

TEXTS = ["a red circle", "", "A BLUE star, at the top-left!", "blue", "ein grünes Quadrat", "words " * 50]


def tiny_trunk(name: str, make: Callable[..., nn.Module], grid: bool) -> str:
    """Register a small timm model, built as its large relatives are. `grid`: it gives maps, not tokens."""
    def entry(pretrained: bool = False, **given: object) -> nn.Module:
        model = make(**{k: v for k, v in given.items() if k in ("num_classes", "global_pool")})
        model.default_cfg = {"pool_size": (2, 2) if grid else None}
        return model

    entry.__name__, entry.__module__ = name, __name__
    setattr(sys.modules[__name__], name, entry)
    timm.models.register_model(entry)
    return name


def vit_trunk(name: str, **given: object) -> str:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2} | given
    return tiny_trunk(name, lambda **more: timm.models.VisionTransformer(**settings | more), grid=False)


def hybrid(**more: object) -> nn.Module:
    from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed

    stem = ConvStem(channels=(16, 64), kernel_size=(4, 2), stride=(4, 2), depth=2, padding=0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=1, embed_dim=64, depth=2, num_heads=2, no_embed_class=True,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False), **more)


EVA = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "qkv_fused": False,
       "mlp_ratio": 8 / 3, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True,
       "ref_feat_shape": (4, 4)}
FASTVIT = {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "mlp_ratios": (2,) * 4, "lkc_use_act": True,
           "token_mixers": ("repmixer",) * 4, "se_downsamples": (False, False, True, True)}
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (1, 2, 1), "num_heads": (2, 2, 2), "window_size": 4}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
TRUNKS = {
    "siglip": vit_trunk("tiny_siglip", class_token=False, global_pool="map"),
    "registers": vit_trunk("tiny_registers", reg_tokens=4),
    "registers_map": vit_trunk("tiny_map", class_token=False, reg_tokens=1, global_pool="map",
                               pool_include_prefix=True),
    "eva": tiny_trunk("tiny_eva", lambda **more: timm.models.Eva(**EVA | more), grid=False),
    "mci": tiny_trunk("tiny_mci", hybrid, grid=False),
    "fastvit": tiny_trunk("tiny_fastvit", lambda **more: timm.models.FastVit(**FASTVIT | more), grid=True),
    "convnext": tiny_trunk("tiny_convnext", lambda **more: timm.models.ConvNeXt(**CONVNEXT | more), grid=True),
    "swin": tiny_trunk("tiny_swin", lambda **more: timm.models.SwinTransformer(**SWIN | more), grid=True),
    "mixer": tiny_trunk("tiny_mixer", lambda **more: timm.models.MlpMixer(
        img_size=32, patch_size=8, embed_dim=64, num_blocks=1, **more), grid=False),
}
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {"context_length": 16, "vocab_size": 200, "hf_tokenizer_name": "mine", "width": 32, "heads": 2,
               "layers": 2, "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True,
               "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
QUERIES = {"attn_pooler_queries": 8, "attn_pooler_heads": 2}


def vit(**more: object) -> dict:
    return {"vision_cfg": VIT | more}


def timm_tower(name: str, pool: str, proj: str | None, size: object = 32, **more: object) -> dict:
    return {"vision_cfg": {"timm_model_name": TRUNKS[name], "timm_pool": pool, "timm_proj": proj, "image_size": size},
            "custom_text": True, **more}


# kind -> (model config without what is common, the grid, the module that holds the patches, whether as its output)
KINDS: dict[str, tuple[dict, tuple[int, int], str, bool]] = {
    "vit": (vit(), (4, 4), "ln_post", True),
    "vit, quick_gelu": (vit() | {"quick_gelu": True}, (4, 4), "ln_post", True),
    "vit, average": (vit(pool_type="avg"), (4, 4), "ln_post", True),
    "vit, norm after pooling": (vit(pool_type="avg", final_ln_after_pool=True), (4, 4), "transformer", True),
    "vit, no first norm": (vit(no_ln_pre=True, pos_embed_type="sin_cos_2d"), (4, 4), "ln_post", True),
    "vit, other blocks": (vit(qk_norm=True, scale_attn=True, scale_fc=True), (4, 4), "ln_post", True),
    "vit, attentional pooling": (vit(attentional_pool=True, **QUERIES), (4, 4), "attn_pool", False),
    "vit, one query": (vit(attentional_pool=True, pool_type="none", attn_pooler_queries=1, attn_pooler_heads=2), (4, 4),
                       "attn_pool", False),
    "vit, parallel": (vit(attentional_pool="parallel", **QUERIES) | {"embed_dim": 64}, (4, 4), "attn_pool", False),
    "vit, cascade": (vit(attentional_pool="cascade", **QUERIES) | {"embed_dim": 64}, (4, 4), "attn_pool", False),
    "vit, rectangular": (vit(image_size=[32, 48]), (4, 6), "ln_post", True),
    "resnet": ({"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}, (2, 2),
               "attnpool", False),
    "convnext": (timm_tower("convnext", "", "linear", 64), (2, 2), "trunk.head", False),
    "convnext, rectangular": (timm_tower("convnext", "avg", "mlp", [64, 96]), (2, 3), "trunk.head", False),
    "convnext, attention": (timm_tower("convnext", "abs_attn", "linear", 64), (2, 2), "trunk.head", False),
    "swin": (timm_tower("swin", "avg", "linear", 64), (4, 4), "trunk.head", False),
    "siglip": (timm_tower("siglip", "map", "none", embed_dim=64, init_logit_bias=-10, text_cfg=SIGLIP_TEXT), (4, 4),
               "trunk.attn_pool", False),
    "siglip 2": (timm_tower("siglip", "map", "none", embed_dim=64, init_logit_bias=-10,
                            text_cfg=SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}}), (4, 4),
                 "trunk.attn_pool", False),
    "eva": (timm_tower("eva", "token", None), (4, 4), "trunk.norm", True),
    "registers": (timm_tower("registers", "token", None), (4, 4), "trunk.norm", True),
    "registers, map": (timm_tower("registers_map", "map", "linear"), (4, 4), "trunk.attn_pool", False),
    "mobileclip s": (timm_tower("fastvit", "avg", None, 64, text_cfg=TEXT | {"no_causal_mask": True}), (2, 2),
                     "trunk.head", False),
    "mobileclip b": (timm_tower("mci", "token", None), (4, 4), "trunk.norm", True),
    "coca": ({"vision_cfg": VIT | {"attentional_pool": True, "output_tokens": True, **QUERIES}, "custom_text": True,
              "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True}, "multimodal_cfg": TEXT | {
                  "attn_pooler_heads": 2}}, (4, 4), "attn_pool", False),
    "text without a causal mask": (vit() | {"text_cfg": TEXT | {"no_causal_mask": True}}, (4, 4), "ln_post", True),
    "text pooled at its first token": (vit() | {"text_cfg": TEXT | {"pool_type": "first", "no_causal_mask": True}},
                                       (4, 4), "ln_post", True),
    "text pooled at its last token": (vit() | {"text_cfg": TEXT | {"pool_type": "last"}}, (4, 4), "ln_post", True),
    "text pooled at a given token": (vit() | {"text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407}}, (4, 4),
                                     "ln_post", True),
    "text of transformers": (vit() | {"text_cfg": {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}}, (4, 4),
                             "ln_post", True),
    "text of transformers, class token": (vit() | {"text_cfg": {"hf_pooler_type": "cls_pooler",
                                                                "hf_proj_type": "linear"}}, (4, 4), "ln_post", True),
}


def save_words(folder: Path, bert: bool) -> int:
    """A tokenizer of the words of scenes, such as SigLIP's or BERT's are; returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    known = [*special, "a", "at", "the", *sorted(frozenset().union(*scenes.WORD_CLASSES.values()))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>" if bert else "$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>" if bert else "</s>", eos_token="</s>",
                            unk_token="<unk>").save_pretrained(folder)
    return len(known)


def make_folder(folder: Path, config: dict, seed: int = 0, **preprocessing: object) -> Path:
    """A CLIP with random weights in open_clip's folder format."""
    folder.mkdir(parents=True)
    config = {"embed_dim": 32, "text_cfg": TEXT} | json.loads(json.dumps(config))
    if "hf_pooler_type" in config["text_cfg"]:
        from transformers import BertConfig

        size = save_words(folder, bert=True)
        BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                   max_position_embeddings=80).save_pretrained(folder)
        config["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": "mine"}
    elif "hf_tokenizer_name" in config["text_cfg"]:
        save_words(folder, bert=False)
    about = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.3, 0.2], "resize_mode": "squash"} | preprocessing
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": about}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        for name, value in model.named_parameters():  # some begin as zeros, and hide what depends on them
            if value.ndim and (name.endswith("bn3.weight") or not value.any()):
                nn.init.normal_(value, std=0.1)
    weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def own(folder: Path) -> nn.Module:
    """The same CLIP as open_clip loads it."""
    return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True, pretrained_text=False).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("kinds"), {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_folder(root / kind.replace(" ", "_").replace(",", ""), KINDS[kind][0])
        return made[kind]

    return get


def cards(n: int, size: int = 48) -> Tensor:
    """Images of 6 x 6 coloured fields."""
    fields = rng("cards", n).integers(0, 256, (n, 3, 6, 6)).repeat(size // 6, 2).repeat(size // 6, 3)
    return torch.from_numpy(fields).byte()


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_open_clip(folders, kind):
    clip, plain, images = load_clip(str(folders(kind))), own(folders(kind)), cards(5)
    with torch.no_grad():
        expected = plain.encode_image(clip.preprocess(images, "colour"), normalize=True).reshape(5, -1)
        texts = plain.encode_text(open_clip.get_tokenizer(f"local-dir:{folders(kind)}")(TEXTS), normalize=True)
    clip.patches(images, "grey")  # reading patches changes no embedding
    torch.testing.assert_close(clip.embed_images(images, "colour"), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(clip.embed_texts(TEXTS), texts, atol=2e-6, rtol=0)
    assert (expected[0] - expected[1]).norm() > 5e-5 and (texts[0] - texts[2]).norm() > 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_what_the_pooling_gets(folders, kind):
    _, (height, width), place, as_output = KINDS[kind]
    clip, plain, images = load_clip(str(folders(kind))), own(folders(kind)), cards(3)
    seen: list[Tensor] = []
    plain.visual.get_submodule(place).register_forward_hook(
        lambda module, given, output: seen.append(output if as_output else given[0]))
    with torch.no_grad():
        plain.encode_image(clip.preprocess(images, "colour"))
    expected, patches = seen[0], clip.patches(images, "colour")
    if expected.ndim == 4:
        expected = expected.flatten(1, 2) if kind == "swin" else expected.flatten(2).transpose(1, 2)
    assert patches.shape == (3, height * width, expected.shape[2]) and 0 <= expected.shape[1] - height * width <= 5
    torch.testing.assert_close(patches, expected[:, -height * width:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mobileclip s"])  # its convolutions mix all cells
def test_patches_lie_on_the_grid_row_by_row(folders, kind):
    _, (height, width), _, _ = KINDS[kind]
    clip = load_clip(str(folders(kind)))
    before = torch.full((1, 3, 96, 96), 128, dtype=torch.uint8)
    for row in range(height):
        for column in range(width):
            after, (h, w) = before.clone(), (96 // height, 96 // width)
            after[..., row * h:(row + 1) * h, column * w:(column + 1) * w] = cards(1, 96)[..., :h, :w]
            change = (clip.patches(after, "colour") - clip.patches(before, "colour")).norm(dim=2)
            assert int(change.argmax()) == row * width + column


@pytest.mark.parametrize("kind", ["vit", "vit, rectangular", "resnet", "convnext", "convnext, attention", "swin",
                                  "siglip", "eva", "mobileclip s", "coca"])
def test_cached_features_are_those_of_the_images(folders, home, kind):
    clip, dataset = load_clip(str(folders(kind))), load(DataConfig(**DATA), "validation")
    patches, images = clip.patches(pixels(dataset), "blur"), clip.embed_images(pixels(dataset), "blur")
    cached = torch.from_numpy(np.array(patch_features(clip, dataset, "blur", batch=7))).float()
    torch.testing.assert_close(cached, patches, atol=2e-3, rtol=2e-3)  # kept in float16
    torch.testing.assert_close(image_embeddings(clip, dataset, "blur", batch=7), images, atol=2e-6, rtol=0)


@pytest.mark.parametrize("change, message", [
    (vit(pool_type="none"), "one vector each of one width; a single image gives \\[1, 17, 32\\]"),
    (vit(patch_size=32), "does not give a grid of patches, but"),
    (timm_tower("mixer", "avg", "linear"), "image tower MlpMixer does not give a grid of patches .*num_prefix_tokens"),
    (vit() | {"text_cfg": TEXT | {"pool_type": "none"}}, "two texts \\[2, 24, 32\\]"),
])
def test_what_is_not_supported_is_refused_when_it_is_opened(tmp_path, change, message):
    with pytest.raises(DixitError, match=message) as caught:
        load_clip(str(make_folder(tmp_path / "clip", change)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [24, (24, 40), 80])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_images_are_resized_as_open_clip_does(mode, interpolation, size):
    """Up to 1.5 of 255, since Pillow rounds after each of its two passes. It clips there too: where a bicubic filter
    overshoots 0 or 255 in the first pass, a few pixels at corners of fields differ by more.
    """
    config = PreprocessCfg(size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=interpolation, resize_mode=mode,
                           fill_color=200)
    transform = image_transform_v2(config, is_train=False)
    for shape in ((48, 48), (48, 30), (30, 48)):
        for image in cards(1)[0, :, :shape[0], :shape[1]] // 2 + 64, cards(1)[0, :, :shape[0], :shape[1]]:
            expected = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
            error = (fit_to_tower(image[None] / 255, config)[0] - expected).abs() * 255
            overshoots = image.max() > 191
            assert (error > 1.5).float().mean() < (0.005 if overshoots else 1e-9) and error.max() < 12


@pytest.mark.parametrize("about", [
    {"mean": 0.5, "std": [0.2, 0.3, 0.4], "resize_mode": "longest", "fill_color": 255},
    {"resize_mode": "shortest", "interpolation": "bilinear"}, {}])
def test_a_clip_takes_images_as_its_folder_says(tmp_path, about):
    folder = make_folder(tmp_path / "clip", vit(image_size=[32, 48]), **about)
    clip = load_clip(str(folder))
    images = torch.stack([cards(2)[0] // 2 + 64, torch.full((3, 48, 48), 255, dtype=torch.uint8)])
    transform = image_transform_v2(PreprocessCfg(**own(folder).visual.preprocess_cfg), is_train=False)
    expected = torch.stack([transform(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in images])
    torch.testing.assert_close(clip.preprocess(images, "colour"), expected, atol=1.5 / 255 / 0.2, rtol=0)


def test_the_preprocessing_of_square_images_is_one_bicubic_resize(tmp_path):
    """What every published figure was computed with, to the digit."""
    clip, images = load_clip(str(make_folder(tmp_path / "clip", vit()))), cards(3)
    plain = F.resize(images.float() / 255, [32, 32], F.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    assert torch.equal(clip.preprocess(images, "colour"), F.normalize(plain, [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]))
    for mode in "shortest", "longest":
        assert torch.equal(fit_to_tower(images / 255, PreprocessCfg(32, resize_mode=mode)), plain)


def keys(folder: Path) -> tuple[str, str, str]:
    clip = load_clip(str(folder))
    return clip.key, clip.tower_key, clip.text_key


def test_keys_change_with_everything_that_the_features_depend_on(tmp_path):
    def change(file: str, edit: Callable[[dict], object]) -> None:
        content = json.loads((folder / file).read_text())
        edit(content)
        (folder / file).write_text(json.dumps(content))

    folder = make_folder(tmp_path / "clip", KINDS["siglip"][0])
    config = "open_clip_config.json"
    found = [keys(folder)]
    assert keys(folder) == found[0]
    change(config, lambda c: c["preprocess_cfg"].update(mean=[0.1, 0.2, 0.3]))
    found.append(keys(folder))
    change(config, lambda c: c["preprocess_cfg"].update(interpolation="bilinear"))
    found.append(keys(folder))
    change(config, lambda c: c["model_cfg"].update(quick_gelu=True))
    found.append(keys(folder))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.trunk.blocks.0.mlp.fc1.weight"][0, 0] += 1e-3
    save_file(weights, folder / "open_clip_model.safetensors")
    found.append(keys(folder))
    images, towers, texts = (len(set(some)) for some in zip(*found, strict=True))
    assert (images, towers, texts) == (5, 5, 1)
    change("tokenizer.json", lambda c: c["model"]["vocab"].update(red=c["model"]["vocab"]["blue"]))
    found.append(keys(folder))
    change(config, lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"clean": "lower"}))
    found.append(keys(folder))
    weights["text.transformer.resblocks.0.mlp.c_fc.weight"][0, 0] += 1e-3
    save_file(weights, folder / "open_clip_model.safetensors")
    found.append(keys(folder))
    assert len({text for _, _, text in found}) == 4 and len({tower for _, tower, _ in found}) == 5


def test_features_of_other_preprocessing_are_not_read(tmp_path, home):
    dataset = load(DataConfig(**DATA), "validation")
    folders = [make_folder(tmp_path / place / "clip", vit(), mean=mean) for place, mean in (
        ("a", [0.5] * 3), ("b", [0.1] * 3))]
    found = [(patch_features(load_clip(str(f)), dataset, "colour"), load_clip(str(f))) for f in folders]
    for cached, clip in found:
        direct = clip.patches(pixels(dataset), "colour")
        torch.testing.assert_close(torch.from_numpy(np.array(cached)).float(), direct, atol=2e-3, rtol=2e-3)
    assert not np.allclose(found[0][0], found[1][0], atol=0.1)


def test_features_of_a_changed_perception_or_an_older_version_are_not_read(tmp_path, home, monkeypatch):
    clip, dataset = load_clip(str(make_folder(tmp_path / "clip", vit()))), load(DataConfig(**DATA), "validation")
    tables = []
    for levels in (2, 3, 2):
        monkeypatch.setitem(perception.PERCEPTIONS, "coarse", lambda x, n=levels: (x * n).round() / n)
        tables.append((patch_features(clip, dataset, "coarse"), image_embeddings(clip, dataset, "coarse")))
    assert tables[0][0].filename == tables[2][0].filename != tables[1][0].filename
    assert not torch.equal(tables[0][1], tables[1][1]) and torch.equal(tables[0][1], tables[2][1])
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    assert patch_features(clip, dataset, "coarse").filename != tables[2][0].filename


def test_perceptions_have_keys_of_their_own_and_must_not_be_random(monkeypatch):
    found = {name: perception.perception_key(name) for name in perception.PERCEPTIONS}
    assert len(set(found.values())) == len(found)
    assert found == {name: perception.perception_key(name) for name in perception.PERCEPTIONS}
    monkeypatch.setitem(perception.PERCEPTIONS, "noisy", lambda x: (x + 0.1 * torch.rand_like(x)).clamp(0, 1))
    with pytest.raises(DixitError, match="'noisy' makes other pixels of the same image the second time"):
        perception.perception_key("noisy")


@pytest.mark.parametrize("edit, message", [
    (lambda c: c.pop("model_cfg"), "open_clip_config.json has no section 'model_cfg'"),
    (lambda c: c["model_cfg"].pop("text_cfg"), "open_clip_config.json lacks model_cfg.text_cfg"),
    (lambda c: c["model_cfg"].update(embed_dim="wide"), "lacks model_cfg.embed_dim"),
    (lambda c: c["model_cfg"].update(embed_dim=48), "weights in open_clip_model.safetensors do not fit.*size mismatch"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(layers=3), "do not fit.*Missing key.*resblocks.2"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=10**6), "image_size is 1000000; it must be"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=[32, 0]), "image_size is .32, 0.; it must be"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(depth=2), "unexpected keyword argument 'depth'"),
    (lambda c: c["preprocess_cfg"].update(resize_mode="crop"), "resize_mode is crop; it must be one of shortest"),
    (lambda c: c["preprocess_cfg"].update(interpolation="lanczos"), "interpolation is lanczos; it must be one of"),
    (lambda c: c["preprocess_cfg"].update(std=[1, 2]), "std is .1, 2.; it must be three numbers"),
    (lambda c: c["preprocess_cfg"].update(std=[0, 1, 1]), "std evaluated to zero"),
    (lambda c: c["preprocess_cfg"].update(fill_color="white"), "fill_color is .'white', 'white', 'white'.; it must be"),
])
def test_a_damaged_config_is_one_line(tmp_path, edit, message):
    path = make_folder(tmp_path / "clip", vit()) / "open_clip_config.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DixitError, match=message) as caught:
        load_clip(str(path.parent))
    assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)


def test_a_folder_in_another_format_is_one_line(tmp_path):
    folder = make_folder(tmp_path / "clip", vit())
    for content, message in (("{", "open_clip_config.json is not valid JSON"), ("[]", "no section 'model_cfg'")):
        (folder / "open_clip_config.json").write_text(content)
        with pytest.raises(DixitError, match=message):
            load_clip(str(folder))
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(DixitError, match="the folder has no open_clip_config.json"):
        load_clip(str(folder))
    for kind in "clip_text_model", "siglip":
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(DixitError, match=f"model of transformers .{kind}., not one of open_clip; .* name and tag"):
            load_clip(str(folder))


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "weights.pt"])
def test_weights_that_are_a_pickle_are_never_opened(tmp_path, monkeypatch, name):
    folder = make_folder(tmp_path / "clip", vit())
    (folder / name).write_bytes(b"not opened")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    before = load_clip(str(folder)).key
    (folder / "open_clip_model.safetensors").rename(folder / "mine.safetensors")  # open_clip itself would take the .bin
    assert load_clip(str(folder)).key == before
    (folder / "mine.safetensors").unlink()
    with pytest.raises(DixitError, match="no open_clip_model.safetensors; weights in other formats are not read"):
        load_clip(str(folder))


@pytest.mark.parametrize("name, tag, message", [
    ("ViT-B32", "openai", "no such folder or open_clip model; the nearest names are ViT-B-32"),
    ("openai/clip-vit-base-patch32", "", "of transformers, take .*ViT-B-32-quickgelu, openai;.*hf-hub:"),
    ("ViT-B-32", "opnai", "unknown tag; choose one for `pretrained`: openai, "),
    ("ViT-B-32", "", "choose one for `pretrained`: openai, "),
    ("ViT-S-16", "mine.pt", "choose one for `pretrained`: a .safetensors file"),
])
def test_unknown_names_and_tags_are_one_line(name, tag, message):
    with pytest.raises(DixitError, match=message) as caught:
        load_clip(name, tag)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_an_open_clip_name_takes_weights_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", {"embed_dim": 32, "text_cfg": TEXT, **vit()})
    files = [make_folder(tmp_path / str(seed), vit(), seed) / "open_clip_model.safetensors" for seed in (0, 1)]
    clips = [load_clip("ViT-tiny", str(file)) for file in files]
    assert clips[0].tower_key != clips[1].tower_key and clips[0].preprocessing.resize_mode == "shortest"
    again = load_clip(str(make_folder(tmp_path / "ViT-tiny", vit())))
    assert torch.equal(again.embed_texts(TEXTS), clips[0].embed_texts(TEXTS))


def test_a_listener_whose_clip_is_missing_or_returns_nan_is_named(tmp_path, home):
    dataset = load(DataConfig(**DATA), "validation")
    folder = make_folder(tmp_path / "clip", vit())
    configs = (ListenerConfig("first", clip=str(folder)), ListenerConfig("second", clip="ViT-B-32", pretrained="mine"))
    with pytest.raises(DixitError, match="listener 2 .second.: cannot load CLIP 'ViT-B-32'.*unknown tag"):
        make_listeners(configs, dataset)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text_projection"][0] = float("nan")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(DixitError, match="listener 1 .first.: .*NaN or infinity"):
        make_listeners(configs[:1], dataset)

    class Broken:
        def score(self, texts: list[str], candidates: Tensor) -> Tensor:
            return torch.full(candidates.shape, float("nan"))

    with pytest.raises(DixitError, match="listener 1 returned NaN scores"):
        score_all([Broken()], ["a"], torch.zeros(1, 2, dtype=torch.long))
