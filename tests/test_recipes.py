"""configs/recipes: what they name exists, and they run at full size with random weights (slow).

    python -m pytest tests/test_recipes.py -m slow -s

prints seconds and peak memory of every stage. It needs 8 GB of memory and 6 GB in the temporary folder.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
import transformers as hf
from archives import tar_bytes
from full_size import LLMS, FullSize
from PIL import Image
from processes import free_port, processes_of
from safetensors.torch import load_file

from dixit.config import Config, load_config
from dixit.data.images import load
from dixit.training.checkpoints import trained_weights

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
GAMES = ("vit_b32_vs_grey", "vit_b32_vs_rn50", "vit_b32_vs_vit_l14")
# The other CLIP and LLM of docs/recipes.md, at every stage.
OTHER_SPEAKER = ("clip.name=ViT-B-16-SigLIP", "clip.pretrained=webli", "speaker.llm=Qwen/Qwen3-0.6B-Base")
PARAMETERS = {"ViT-B-32": 151_277_313, "ViT-L-14": 427_616_513, "RN50-quickgelu": 102_007_137,
              "ViT-B-16-SigLIP": 203_155_970, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
              "Qwen/Qwen3-0.6B-Base": 596_049_920}  # of the published models


def recipe(name: str, *overrides: str) -> Config:
    return load_config(ROOT / "configs" / "recipes" / f"{name}.yaml", overrides)


def clips(config: Config) -> set[tuple[str, str]]:
    """(name, tag) of each CLIP that a recipe names."""
    return {(config.clip.name, config.clip.pretrained),
            *((one.clip, one.pretrained) for one in (*config.listeners, *config.heldout))}


@pytest.mark.parametrize("overrides", [(), OTHER_SPEAKER], ids=["as written", "other speaker"])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_models_that_open_clip_knows_with_their_activation(path, overrides):
    for name, tag in clips(load_config(path, overrides)):
        assert open_clip.is_pretrained_cfg(name, tag), (name, tag)
        activation = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        assert open_clip.get_model_config(name).get("quick_gelu", False) == activation, (name, tag)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_models_have_the_published_number_of_parameters(name):
    with torch.device("meta"):  # shapes only
        model = hf.AutoModelForCausalLM.from_config(LLMS[name]) if name in LLMS else \
            open_clip.create_model(name, pretrained=None, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_the_stages_of_a_recipe_fit_together():
    words, caption, *games = [recipe(name) for name in ("words_coco", "caption_coco", *GAMES)]
    assert {path.stem for path in RECIPES} == {"words_coco", "caption_coco", *GAMES}
    assert {config.speaker.llm for config in (words, caption, *games)} <= set(LLMS)
    for config, before in ((caption, words), *((game, caption) for game in games)):
        assert config.speaker.init == str(before.folder)
        assert (config.data, config.clip) == (before.data, before.clip)
        assert {key: getattr(config.speaker, key) for key in ("llm", "prefix", "width", "layers", "max_tokens")} == {
            key: getattr(before.speaker, key) for key in ("llm", "prefix", "width", "layers", "max_tokens")}
    for game in games:
        assert not {(one.clip, one.pretrained) for one in game.listeners} & {
            (one.clip, one.pretrained) for one in game.heldout}


def test_a_game_reads_no_caption(home, train, folder_of_cards, tmp_path):
    """Captions of the images by listed splits: with other captions the game is the same to the last digit."""
    for name, text in (("one", "Card {i}"), ("two", "nothing of the kind, {i} times")):
        entries = [{"filename": f"card {i}.png", "split": "val" if i % 4 == 0 else "train",
                    "sentences": [{"raw": text.format(i=i)}]} for i in range(70)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": entries}))
        train(home.game_config, tmp_path / name, f"data={{name: folder, path: {folder_of_cards}, image_size: 32, "
              f"captions: {tmp_path / name}.json}}", "oracle=[]", "train.steps=2")
    (one, two) = (load_file(trained_weights(tmp_path / name)) for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_shards_of_conceptual_captions_take_the_place_of_coco(home, tmp_path):
    """With the overrides of docs/recipes.md, and a file of img2dataset's beside each image and caption."""
    members = {}
    for i in range(30):
        stream = io.BytesIO()
        Image.new("RGB", (60, 40), (8 * i, 90, 160)).save(stream, "JPEG")
        caption = f"picture number {i}"
        members |= {f"{i:09}.jpg": stream.getvalue(), f"{i:09}.txt": caption.encode(),
                    f"{i:09}.json": json.dumps({"key": f"{i:09}", "caption": caption}).encode()}
    (tmp_path / "cc3m").mkdir()
    (tmp_path / "cc3m" / "00000.tar").write_bytes(tar_bytes(members, "w"))
    command = next(line for line in PAGE.read_text().splitlines() if "data.path=cc3m" in line)
    overrides = [word.replace("cc3m", str(tmp_path / "cc3m")) for word in command.split() if "=" in word]
    parts = [load(recipe("words_coco", *overrides).data, split) for split in ("train", "validation")]
    found = [text for part in parts for texts in part["captions"] for text in texts]
    assert len(set(found)) == len(found) > 20 and all(text.startswith("picture number") for text in found)
    assert parts[0][0]["image"].size == (224, 224)


def test_the_first_warm_start_takes_an_llm_in_bfloat16(home, train, tmp_path):
    train(home.caption_config, tmp_path / "run", "task=words", "speaker.dtype=bfloat16", "train.steps=1")
    assert math.isfinite(json.loads((tmp_path / "run" / "log.jsonl").read_text())["loss"])


# --- at full size ---


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and log, wall and CPU seconds of all its processes with their imports, and their
    peak memory in GB."""

    folder: Path
    log: list[dict]
    seconds: float
    cpu: float
    memory: float


def launch(config: Path, out: Path, processes: int, overrides: list[str], environment: dict[str, str]) -> Run:
    """`accelerate launch` a training on so many processes, and watch the memory of each."""
    launcher = ["--config_file", "configs/accelerate/ddp.yaml"] if processes > 1 else [
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_processes", str(processes),
             "--main_process_port", str(free_port()), "scripts/train.py", str(config), f"out={out}", *overrides]
    began, used, peak = time.monotonic(), cpu_seconds(), 0.0
    with Path(f"{out}.err").open("w") as said:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, sum(map(memory_gb, processes_of(out))))
            time.sleep(0.5)
    seconds, cpu, text = time.monotonic() - began, cpu_seconds() - used, Path(f"{out}.err").read_text()
    assert process.returncode == 0, text
    assert "Traceback" not in text and "QuickGELU mismatch" not in text
    assert json.loads((out / "train.json").read_text())["processes"] == processes
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return Run(out, log, seconds, cpu, peak)


def cpu_seconds() -> float:
    """What the ended children of this process, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_gb(process: int) -> float:
    """Resident memory of a process, pages shared with another counted by halves; 0 if it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024 / 1e9


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Iterator[FullSize]:
    root = tmp_path_factory.mktemp("full")
    yield FullSize(root)
    shutil.rmtree(root)  # some GB


STEPS = ("train.steps=5", "train.eval_every=5", "train.save_every=5", "train.warmup=1")
BATCH = {"words": 8, "caption": 4, "game": 2}  # global, so that each of two processes has at least one image
SPEAKERS = {"smollm2": (), "qwen3": OTHER_SPEAKER}
BEFORE = {"caption_coco": "words_coco", **dict.fromkeys(GAMES, "caption_coco")}
MORE = {"vit_b32_vs_vit_l14": ("heldout=[]",)}  # two processes with both pairs of CLIPs would need more than 8 GB


@pytest.fixture(scope="module")
def stage(files, tiny):
    """Run a recipe after the recipes before it, each once: by speaker, name, processes and further overrides."""
    done: dict[tuple, Run] = {}
    number = itertools.count()

    def run(speaker: str, name: str, processes: int, *more: str) -> Run:
        key = (speaker, name, processes, *more)
        if key not in done:
            more = (*STEPS, *MORE.get(name, ()), *more)
            config = recipe(name, *SPEAKERS[speaker], *more)
            overrides = [*more, f"train.batch={BATCH[config.task]}", *files.overrides(config)]
            if name in BEFORE:
                overrides.append(f"speaker.init={run(speaker, BEFORE[name], 1).folder}")
            out = files.root / f"run{next(number)}"
            done[key] = launch(ROOT / "configs" / "recipes" / f"{name}.yaml", out, processes, overrides,
                               tiny.environment)
            print("\n" + " ".join(map(str, key)), f"| {done[key].seconds:.0f} s, CPU {done[key].cpu:.0f} s, "
                  f"{done[key].memory:.1f} GB", flush=True)
        return done[key]
    return run


def check(run: Run) -> None:
    """Five steps with finite figures, none skipped, and the files of a finished run."""
    assert [line["step"] for line in run.log] == [1, 2, 3, 4, 5]
    for line in run.log:
        figures = {key: value for key, value in line.items() if key != "eval/captions"}
        assert all(map(math.isfinite, figures.values())) and "skipped" not in line and line["grad_norm"] > 0
    assert any(key.startswith("eval/") for key in run.log[-1])
    weights = load_file(trained_weights(run.folder))
    assert weights and all(value.isfinite().all() for value in weights.values())
    assert (run.folder / "config.yaml").is_file()


@pytest.mark.slow
def test_a_game_in_float32_is_the_same_on_one_process_and_on_two(stage):
    """With SGD, because AdamW makes full steps even of gradients that are 0 but for rounding."""
    more = ("speaker.dtype=float32", "heldout=[]", "train.optimizer=sgd", "train.lr=0.1")
    one, two = (stage("smollm2", "vit_b32_vs_grey", processes, *more) for processes in (1, 2))
    check(one)
    check(two)
    close(one, two, loss=1e-4, gradient=1e-3)


CASES = [("smollm2", "words_coco"), ("smollm2", "caption_coco"), *(("smollm2", name) for name in GAMES),
         ("qwen3", "words_coco"), ("qwen3", "caption_coco"), ("qwen3", "vit_b32_vs_grey")]


@pytest.mark.slow
@pytest.mark.parametrize(("speaker", "name"), CASES)
def test_a_recipe_runs_at_full_size_on_one_process_and_on_two(stage, speaker, name):
    one, two = stage(speaker, name, 1), stage(speaker, name, 2)
    check(one)
    check(two)
    if name not in GAMES:  # in a game other rounding may draw another token
        close(one, two, loss=1e-3, gradient=1e-2)  # an LLM in bfloat16, or autocast


def close(one: Run, two: Run, loss: float, gradient: float) -> None:
    """The losses, rewards and gradient norms of every step agree up to these fractions."""
    for a, b in zip(one.log, two.log, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=loss, abs=loss), a["step"]
        assert b.get("reward") == pytest.approx(a.get("reward"), rel=loss, abs=loss), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=gradient), a["step"]
