"""Tiny real models, made offline in seconds: every test that needs a CLIP or an LLM uses these.

`tiny` holds the paths, `home` moves DIXIT_CACHE there for one test, `train` and `command` run things.
Shapes in the annotations of dixit and eval are checked at run time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # more threads only slow tiny models down, above all on a busy machine
sys.path.insert(0, str(ROOT))
install_import_hook(["dixit", "eval"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("long")  # pytest tests/test_fuzz.py --hypothesis-profile=long: more cases, new ones each time
DATA = {"name": "scenes", "image_size": 32, "train": 64, "validation": 24, "test": 24, "combos": 8}


@dataclass(frozen=True)
class Tiny:
    """Where the tiny models and configs lie."""

    root: Path
    llm: Path
    clip: Path
    other_clip: Path
    caption_config: Path
    game_config: Path
    environment: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.root / "cache"


def make_llm(folder: Path) -> Path:
    """A Llama of 2 layers with random weights, and a tokenizer with a token for every word of the scenes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from dixit.common import rng
    from dixit.data import scenes

    texts = [t for i in range(300) for t in scenes.captions(scenes.sample_record(0, "train", i), 4, rng("words", i))]
    words = sorted({w for t in texts for w in t.replace(",", " ,").replace(".", " .").split()})
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llm = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
            initializer_range=0.15, bos_token_id=1, eos_token_id=1))
    llm.save_pretrained(folder)
    return folder


def make_clip(folder: Path, seed: int) -> Path:
    """A CLIP with two small transformers and random weights, in open_clip's folder format."""
    import json

    from open_clip import CLIP
    from safetensors.torch import save_file

    model_config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**model_config)
        for part in (model.token_embedding.weight, model.visual.conv1.weight):
            torch.nn.init.normal_(part, std=0.3)  # so that texts and images are told apart
    folder.mkdir(parents=True)
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
                  "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config,
                                                              "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def make_tiny(root: Path) -> Tiny:
    """Models and configs in the folder `root`."""
    llm, clip, other = make_llm(root / "llm"), make_clip(root / "eye", 1), make_clip(root / "other_eye", 2)
    shared = {
        "data": DATA, "clip": {"name": str(clip)},
        "speaker": {"llm": str(llm), "prefix": 3, "width": 32, "layers": 1, "heads": 2, "max_tokens": 6},
        "train": {"steps": 4, "batch": 4, "lr": 0.01, "warmup": 1, "weight_decay": 0.0, "log_every": 1,
                  "eval_every": 100, "save_every": 2},
        "eval": {"images": 24, "batch": 8},
    }
    listeners = [{"name": "colour", "clip": str(clip), "perception": "colour", "weight": 1.0},
                 {"name": "grey", "clip": str(clip), "perception": "grey", "weight": -1.0}]
    heldout = [listener | {"clip": str(other)} for listener in listeners]
    caption_config, game_config = root / "caption.yaml", root / "game.yaml"
    caption_config.write_text(yaml.safe_dump({"task": "caption", **shared}))
    game_config.write_text(yaml.safe_dump({
        "task": "game", **shared, "listeners": listeners, "heldout": heldout, "oracle": ["colour"],
        "game": {"candidates": 4}, "policy": {"algorithm": "rloo", "samples": 2}}))
    from dixit.data.assets import asset  # of the real cache
    (root / "cache" / "assets").mkdir(parents=True)
    (root / "cache" / "assets" / "wordnet").symlink_to(asset("wordnet"))
    environment = os.environ | {"DIXIT_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
                                "PYTHONPATH": str(ROOT)}
    return Tiny(root, llm, clip, other, caption_config, game_config, environment)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """`tiny`, with the cache of this process moved there too."""
    monkeypatch.setenv("DIXIT_CACHE", str(tiny.cache))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tiny


def train_here(config: Path, out: Path, *overrides: str) -> object:
    """Train in this process what `scripts/train.py CONFIG OVERRIDES` trains; returns the finished task."""
    from accelerate.state import AcceleratorState

    from dixit.config import load_config
    from dixit.training.game_task import TASKS
    from dixit.training.loop import make_accelerator, train

    loaded = load_config(config, [f"out={out}", *overrides])
    AcceleratorState._reset_state()  # it is one for a whole process, which trains but once outside tests
    accelerator = make_accelerator(loaded)
    task = TASKS[loaded.task](loaded, accelerator)
    train(loaded, task, accelerator)
    return task


@pytest.fixture(scope="session")
def train() -> Callable[..., object]:
    return train_here


@pytest.fixture(scope="session")
def command(tiny: Tiny) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python WORDS...` in the repository and wait; keywords go to subprocess.run."""
    def call(*words: object, **keywords: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=tiny.environment,
                              capture_output=True, text=True, timeout=300, **keywords)
    return call


@pytest.fixture(scope="session")
def caption_run(tiny: Tiny) -> Iterator[Path]:
    """A finished run of the caption task; do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_here(tiny.caption_config, tiny.root / "runs" / "caption")
    yield tiny.root / "runs" / "caption"


@pytest.fixture(scope="session")
def game_run(tiny: Tiny, caption_run: Path) -> Iterator[Path]:
    """A finished game that started from `caption_run`; do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_here(tiny.game_config, tiny.root / "runs" / "game", f"speaker.init={caption_run}")
    yield tiny.root / "runs" / "game"


@pytest.fixture(scope="session")
def folder_of_cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 70 small images, each of two colours; their captions are hostile to a web page."""
    from PIL import Image

    from dixit.common import rng

    folder = tmp_path_factory.mktemp("cards")
    for i in range(70):
        colours = rng("card", i).integers(0, 256, size=(2, 3)).tolist()
        image = Image.new("RGB", (40, 40), tuple(colours[0]))
        image.paste(tuple(colours[1]), (8, 8, 30, 30))
        image.save(folder / f"card {i}.png")
        (folder / f"card {i}.txt").write_text(f"Card {i} <img src=x onerror=alert(1)>", encoding="utf-8")
    return folder
