"""Image and text towers with random weights, and plain pictures, for tests of CLIPs that are built here."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from dixit.data import scenes

WIDTH = 32  # of the tiny text tower


def make_towers(cache: Path) -> None:
    """Assets `lite0` and `minilm` as they would be fetched, but small or random."""
    import timm
    from transformers import BertConfig, BertModel, BertTokenizerFast

    lite0, minilm = cache / "assets" / "lite0", cache / "assets" / "minilm"
    for folder in (lite0, minilm):
        folder.mkdir(parents=True)
        (folder / "DONE.json").write_text("{}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "and", "at", "the", "shape", ","]
        words += sorted(frozenset().union(*scenes.WORD_CLASSES.values()))
        text = BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=64, max_position_embeddings=80))
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, lite0 / "model.safetensors")
    text.save_pretrained(minilm)
    (minilm / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(minilm / "vocab.txt")).save_pretrained(minilm)


def make_pictures(root: Path, count: int = 8) -> dict:
    """A folder of plain pictures in two classes, and the config that reads it."""
    from PIL import Image

    for split, name in ((s, n) for s in ("train", "validation", "test") for n in ("dog", "violin")):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            colour = (250, 10 * i, 0) if name == "dog" else (0, 10 * i, 250)
            Image.new("RGB", (48, 48), colour).save(folder / f"{i}.png")
    return {"name": "folder", "path": str(root), "image_size": 48, "train": 0, "validation": 0, "test": 0}
