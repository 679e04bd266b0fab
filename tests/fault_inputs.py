"""Kinds of fault injection, continued: what people give (configs, captions, images, extreme values), and signals that
come while data, caches, warm starts and evaluations are made. See faults.py.
"""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import train_here  # isort: skip  # first: it sets the environment

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from fault_bench import Bench, Random, one_error
from fault_kinds import spoil
from PIL import Image
from safetensors.torch import load_file

from dixit.common import DixitError
from dixit.config import DataConfig, load_config
from dixit.config_checks import CHOICES, RANGES
from dixit.data import images as data_module
from dixit.data import scenes
from dixit.models.clip import Clip, load_clip
from dixit.models.features import patch_features
from dixit.models.speaker import Speaker
from dixit.training.checkpoints import trained_weights
from dixit.training.loop import Task
from dixit.training.runs import load_run
from dixit.training.warm_start import CaptionTask, WordTask
from eval.evaluate import generate_captions

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
HOW = ("truncated", "bit flipped", "overwritten")


def one_line(error: DixitError) -> None:
    assert "\n" not in str(error) and len(str(error)) > 10, error


def config_fault(bench: Bench, folder: Path, r: Random) -> None:
    """A config with one thing wrong is read, or refused in one line, at once."""
    folder.mkdir()
    path, text = folder / "c.yaml", bench.tiny.game_config.read_text()
    rows, overrides = text.splitlines(), []
    place = int(r.integers(len(rows)))
    keys, ranges = list(CHOICES), list(RANGES)
    key = (keys[r.integers(len(keys))] if r.random() < 0.3 else ranges[r.integers(len(ranges))]).replace(
        "listeners.", f"{['listeners', 'heldout'][r.integers(2)]}.{r.integers(3)}.")
    what = r.integers(10)
    if what == 0:  # a line twice
        rows.insert(place, rows[place])
    elif what == 1:
        rows[place] = "\t" + rows[place]
    elif what == 2:  # a key misspelt
        rows[place] = rows[place].replace(":", "x:")
    elif what == 3:  # another value
        values = ["", "null", "no", "-1", "1e400", ".nan", "[]", "{}", "010", "'\\ud800'", "!!python/name:os.system",
                  "*a"]
        rows[place] = rows[place].partition(":")[0] + ": " + values[r.integers(len(values))]
    elif what == 4:
        names = ["&a [*a]", "&a {<<: *a}", "[" * 5000, "- " * 3000, "9" * 5000, "&x " * 500]
        rows.append(f"z: {names[r.integers(len(names))]}")
    elif what in (5, 6, 7):  # a value out of its range, or a choice that there is not
        values = ["-1", "1e30", "-1e30", "0", "99999999999999999999", "nan", "nonsense", "[1, 2]", "{a: 1}", "", "1.5"]
        overrides = [f"{key}={values[r.integers(len(values))]}"]
    path.write_bytes("\n".join(rows).encode(["utf-8", "utf-8-sig", "utf-16"][r.integers(3)]))
    if what in (8, 9):
        spoil(path, r, HOW[r.integers(3)])
    began = time.process_time()
    try:
        load_config(path, overrides)
    except DixitError as error:
        one_line(error)
    assert time.process_time() - began < 2


def damaged_captions(bench: Bench, folder: Path, r: Random) -> None:
    """A spoilt file of captions gives rows, or one line."""
    folder.mkdir()
    names = [f"p{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i * 40, 0, 0)).save(folder / name)
    rows = [{"file_name": name, "text": f"a red thing {name}"} for name in names]
    kind = ["metadata.csv", "metadata.jsonl", "metadata.parquet", "captions.json"][r.integers(4)]
    path = folder / kind
    if kind.endswith("csv"):
        path.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    elif kind.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps({
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"image_id": i, "caption": row["text"]} for i, row in enumerate(rows)]}))
    spoil(path, r, HOW[r.integers(3)])
    data = DataConfig(name="folder", path=str(folder), image_size=16, train=0,
                      captions=kind if kind == "captions.json" else "")
    os.environ["DIXIT_CACHE"] = f"{folder}_cache"
    try:
        with redirect_stderr(io.StringIO()):
            data_module.load(data, "train")
    except DixitError as error:
        one_line(error)
    finally:
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def broken_images(bench: Bench, folder: Path, r: Random) -> None:
    """Under data.broken: skip the images that can be read are as without the others, which are counted and named."""
    photos = folder / "photos" / "train"
    photos.mkdir(parents=True)
    files = [photos / f"p{i:02}.png" for i in range(int(r.integers(4, 14)))]
    for path in files:
        Image.fromarray(r.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    data = DataConfig(name="folder", path=str(folder / "photos"), image_size=16, train=0, broken="skip")
    os.environ["DIXIT_CACHE"] = str(folder / "cache")
    try:
        with redirect_stderr(io.StringIO()):
            whole = data_module.pixels(data_module.load(data, "train"))
        broken = sorted(r.permutation(len(files))[:int(r.integers(1, len(files)))].tolist())
        for i in broken:
            files[i].write_bytes([b"", b"no image", files[i].read_bytes()[:40]][r.integers(3)])
        said = io.StringIO()
        with redirect_stderr(said):
            rest = data_module.pixels(data_module.load(data, "train"))
        kept = [i for i in range(len(files)) if i not in broken]
        assert torch.equal(rest, whole[kept])
        assert f"{len(broken)} of {len(files)} images cannot be read" in said.getvalue()
        assert files[broken[0]].name in said.getvalue()
        try:
            data_module.load(replace(data, broken="error"), "train")
            raise AssertionError("a broken image was taken")
        except DixitError as error:
            one_line(error)
    finally:
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def at_call(owner: Any, name: str, goal: int, number: int) -> Callable[[], int]:
    """Send this process a signal at a call of a function; returns a function that says how often it was called."""
    calls, real = 0, getattr(owner, name)

    def watched(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == goal:
            os.kill(os.getpid(), number)
        return real(*given, **more)

    setattr(owner, name, watched)
    return lambda: calls


def stopped(bench: Bench, folder: Path, number: int, work: Callable[[], object]) -> None:
    """A child must end as a command that a signal ends (or SIGKILL)."""
    code, said = bench.child(folder, work)
    if number == signal.SIGKILL:
        assert code == -number, said
    else:
        assert code == 128 + number and "Traceback" not in said, said


def signal_in_data(bench: Bench, folder: Path, r: Random) -> None:
    """A data set whose making was ended by a signal leaves nothing, one that was killed nothing after the next."""
    number = [*SIGNALS, signal.SIGKILL][r.integers(4)]
    data = replace(load_config(bench.tiny.game_config).data, seed=int(r.integers(1000)))
    try:
        def work() -> None:
            at_call(scenes, "draw", int(r.integers(6, 24)), number)
            data_module.load(data, "validation")

        with redirect_stderr(io.StringIO()):
            whole = data_module.pixels(data_module.load(data, "validation"))
        os.environ["DIXIT_CACHE"] = str(folder)
        stopped(bench, folder, number, work)
        if number != signal.SIGKILL:
            assert not list((folder / "data").glob(".tmp-*"))
        with redirect_stderr(io.StringIO()):
            assert torch.equal(data_module.pixels(data_module.load(data, "validation")), whole)
        assert not list((folder / "data").glob(".tmp-*"))
    finally:
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def signal_in_a_cache(bench: Bench, folder: Path, r: Random) -> None:
    """Features whose making was ended by a signal are gone on with, and are the same."""
    number, goal = SIGNALS[r.integers(3)], int(r.integers(2, 7))
    config = load_config(bench.tiny.game_config)
    with redirect_stderr(io.StringIO()):
        rows, clip = data_module.load(config.data, "validation"), load_clip(config.clip.name)
        whole = np.array(patch_features(clip, rows, "blur", batch=4))
    os.environ["DIXIT_CACHE"] = str(folder)
    real = Clip.patches
    try:
        def work() -> None:
            at_call(Clip, "patches", goal, number)
            patch_features(clip, rows, "blur", batch=4)

        stopped(bench, folder, number, work)
        count = at_call(Clip, "patches", 0, 0)
        with redirect_stderr(io.StringIO()):
            again = np.array(patch_features(clip, rows, "blur", batch=4))
        assert np.array_equal(whole, again)
        assert count() <= 1 + len(rows) // 4 - max(0, goal - 3), "what was finished was made again"
    finally:
        Clip.patches = real  # type: ignore[method-assign]
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def signal_in_an_evaluation(bench: Bench, folder: Path, r: Random) -> None:
    """Captions whose generation was ended by a signal leave nothing half done; those of a finished speaker are kept."""
    number, run = SIGNALS[r.integers(3)], bench.root / "evaluated"
    with redirect_stderr(io.StringIO()):
        if not run.is_dir():
            train_here(bench.tiny.game_config, run, "train.steps=1")
        opened = load_run(run)
        rows = data_module.load(opened.config.data, "test")
        whole = generate_captions(opened, rows)["trained"]["texts"]
    os.environ["DIXIT_CACHE"] = str(folder)
    try:
        def work() -> None:
            at_call(Speaker, "sample", int(r.integers(1, 4)), number)
            generate_captions(load_run(run), rows)

        stopped(bench, folder, number, work)
        assert not list((folder / "captions").glob("*")), "half of the captions were kept"
        with redirect_stderr(io.StringIO()):
            assert generate_captions(load_run(run), rows)["trained"]["texts"] == whole
    finally:
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def signal_in_a_warm_start(bench: Bench, folder: Path, r: Random) -> None:
    """A warm start that was ended by a signal saves, goes on, and ends as the uninterrupted one."""
    number, at, task = SIGNALS[r.integers(3)], int(r.integers(1, 4)), ["words", "caption"][r.integers(2)]
    words = (f"task={task}", "train.save_every=1000")
    whole = bench.root / f"warm_{task}"
    if not whole.is_dir():
        with redirect_stderr(io.StringIO()):
            train_here(bench.tiny.caption_config, whole, *words)
    kind: type[Task] = WordTask if task == "words" else CaptionTask

    def work() -> None:
        at_call(kind, "loss", at, number)
        train_here(bench.tiny.caption_config, folder, *words)

    stopped(bench, folder, number, work)
    code, said = bench.child(folder, lambda: train_here(bench.tiny.caption_config, folder, *words))
    assert code == 0, said
    one, other = (load_file(trained_weights(run)) for run in (whole, folder))
    assert all(torch.equal(one[key], other[key]) for key in one)


EXTREMES = (
    "policy.temperature=0.01", "policy.temperature=100", "train.lr=0", "train.lr=1e30", "train.betas=[0, 0]",
    "train.betas=[0.999999, 0.999999]", "train.weight_decay=1e30", "train.clip_norm=1e-30", "train.clip_norm=0",
    "train.warmup=1000000000", "train.warmup=0", "train.max_skipped=0", "train.keep_last=1000000", "train.batch=1",
    "train.schedule=constant", "train.optimizer=sgd", "train.mixed_precision=bf16", "speaker.dtype=bfloat16",
    "speaker.prefix=1", "speaker.max_tokens=1", "speaker.layers=8", "speaker.heads=32", "speaker.lora_rank=1",
    "listeners.0.weight=1e30", "listeners.1.weight=-1e30", "listeners.0.weight=0", "listeners.0.learning_rate=1e30",
    "game.length_cost=1e30", "game.length_cost=-1e30", "game.repetition_cost=1e30", "game.kl_cost=1e30",
    "game.candidates=2", "game.candidates=24", "game.pools=9", "game.reward=dixit", "game.reward=product",
    "game.distractors=hard", "game.audience=shuffled", "policy.samples=9", "policy.algorithm=self_critical",
    "policy.algorithm=ppo", "policy.algorithm=reinforce", "policy.baseline_decay=0", "policy.clip_ratio=0.999999",
    "policy.algorithm=dpo", "policy.beta=1e30", "policy.baseline=audience", "game.normalise=listener",
    "seed=4294967295", "data.seed=4294967295", "data.image_size=16", "data.train=1", "eval.batch=1")


def extreme_values(bench: Bench, folder: Path, r: Random) -> None:
    """Values at the ends of their ranges, two together: a step of training, or one line."""
    chosen = {EXTREMES[i].partition("=")[0]: EXTREMES[i] for i in r.permutation(len(EXTREMES))[:2]}
    config = bench.tiny.game_config

    def work() -> None:
        train_here(config, folder, "train.steps=2", *chosen.values())

    code, said = bench.child(folder, work)
    if code:
        one_error(code, said)
