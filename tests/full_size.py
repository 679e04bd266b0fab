"""The files of the recipes (configs/recipes) at full size with random weights, and COCO's files with drawn images.

Shapes are those of the published models; tokenizers that cannot be had offline are replaced by smaller ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

from dixit.common import rng
from dixit.config import Config
from dixit.data.assets import asset

WEIGHTS = "open_clip_model.safetensors"
SMOLLM2_360M = hf.LlamaConfig(
    vocab_size=49152, hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
    num_key_value_heads=5, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, bos_token_id=0, eos_token_id=0)
QWEN3_06B = hf.Qwen3Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, bos_token_id=0, eos_token_id=0)
LLMS = {"HuggingFaceTB/SmolLM2-360M": SMOLLM2_360M, "Qwen/Qwen3-0.6B-Base": QWEN3_06B}  # by the recipes' names


def copy_tokenizer(name: str, folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(asset(name) / file, folder / file)


def make_llm(folder: Path, name: str) -> Path:
    """An LLM in bfloat16 with the tokenizer of SmolLM2, which is smaller than Qwen3's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llm = hf.AutoModelForCausalLM.from_config(LLMS[name], dtype=torch.bfloat16)
    llm.save_pretrained(folder)
    copy_tokenizer("smollm2-135m", folder)
    return folder


def make_clip(folder: Path, name: str, seed: int) -> Path:
    """A CLIP by open_clip's name, in its folder format. SigLIP gets MiniLM's tokenizer (30,522 tokens of 32,000)."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(name, pretrained=None)
    about = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    if "hf_tokenizer_name" in about["model_cfg"]["text_cfg"]:
        copy_tokenizer("minilm", folder)
    return folder


def make_coco(folder: Path, **images: int) -> Path:
    """Images of two colours, as many for each split as `images` says, and dataset_coco.json with Karpathy's splits."""
    colours = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (240, 220, 50)}
    names, entries = list(colours), []
    for split, count in images.items():
        for i in range(count):
            back, front, x, y = rng("coco", split, i).integers(0, (4, 4, 200, 120)).tolist()
            image = Image.new("RGB", (320, 240), colours[names[back]])
            image.paste(colours[names[front]], (x, y, x + 90, y + 90))
            place = folder / "val2014" / f"COCO_val2014_{len(entries):012}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)
            texts = [f"a {names[front]} square on {names[back]}", f"something {names[front]} in front of a wall"]
            entries.append({"filepath": "val2014", "filename": place.name, "split": split,
                            "sentences": [{"raw": text} for text in texts]})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return folder


class FullSize:
    """Makes files in the folder `root`, each at its first use."""

    def __init__(self, root: Path):
        self.root = root

    def clip(self, name: str, tag: str) -> Path:
        folder = self.root / f"{name}-{tag}"
        seed = int(rng("clip", name, tag).integers(1000))
        return folder if folder.is_dir() else make_clip(folder, name, seed)

    def llm(self, name: str) -> Path:
        folder = self.root / name.replace("/", "-")
        return folder if folder.is_dir() else make_llm(folder, name)

    def coco(self) -> Path:
        folder = self.root / "coco"
        return folder if folder.is_dir() else make_coco(folder, train=12, val=10, test=2)

    def overrides(self, config: Config) -> list[str]:
        """What puts local files in the place of the weights and images that a recipe names.

        A CLIP keeps its name and has its weights read from a file; SigLIP, whose tokenizer open_clip would download, is
        read from a folder.
        """
        def of_clip(key: str, name: str, tag: str) -> list[str]:
            section, folder = key.rpartition(".")[0], self.clip(name, tag)
            if (folder / "tokenizer.json").is_file():
                return [f"{key}={folder}", f"{section}.pretrained="]
            return [f"{key}={name}", f"{section}.pretrained={folder / WEIGHTS}"]

        coco = self.coco()
        found = [f"data.path={coco}", f"data.captions={coco / 'dataset_coco.json'}",
                 f"speaker.llm={self.llm(config.speaker.llm)}",
                 *of_clip("clip.name", config.clip.name, config.clip.pretrained)]
        for group, listeners in ("listeners", config.listeners), ("heldout", config.heldout):
            for i, one in enumerate(listeners):
                found += of_clip(f"{group}.{i}.clip", one.clip, one.pretrained)
        return found
