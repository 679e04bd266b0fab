"""The kinds of fault: each is given the bench, an empty folder, and its random numbers. See faults.py."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import train_here  # isort: skip  # first: it sets the environment

import numpy as np
import torch
from fault_bench import EVERY, STEPS, Bench, Random, lines, one_error, sound, toy
from PIL import Image
from processes import fork, together, wait
from safetensors.torch import load_file

from dixit.common import DixitError
from dixit.config import load_config
from dixit.data import images as data_module
from dixit.data.captions import texts as caption_lines
from dixit.models.clip import load_clip
from dixit.models.features import image_embeddings, patch_features
from dixit.models.listeners import score_all
from dixit.training import checkpoints as saving
from dixit.training import loop
from dixit.training.checkpoints import FILES, checkpoints, step_of, trained_weights, verify_checkpoint


def kill_at_a_step(bench: Bench, folder: Path, r: Random) -> None:
    at = int(r.integers(STEPS))
    code, said = bench.child(folder, lambda: toy(
        folder, lambda s: os.kill(os.getpid(), signal.SIGKILL) if s == at else None))
    assert code == -signal.SIGKILL, said
    assert max(sound(folder), default=0) == at // EVERY * EVERY, "a completed checkpoint is gone"
    bench.ends_as_whole(folder)


def signal_at_a_step(bench: Bench, folder: Path, r: Random) -> None:
    """The first signal lets the step end and saves; a second one, in the same step, ends at once."""
    at, how = int(r.integers(STEPS - 1)), [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT][r.integers(3)]
    twice = bool(r.integers(2))

    def fault(step: int) -> None:
        for _ in range(1 + twice if step == at else 0):
            os.kill(os.getpid(), how)

    code, said = bench.child(folder, lambda: toy(folder, fault, save_every=1000))
    assert code == 128 + how and "Traceback" not in said, said
    if twice:
        assert not sound(folder) and "interrupted by" in said, said
    else:
        assert sound(folder) == [at + 1] and f"stopped after step {at + 1} of {STEPS}" in said, said
    bench.ends_as_whole(folder)


def kill_inside_a_save(bench: Bench, folder: Path, r: Random) -> None:
    """SIGKILL before, after or in the middle of one of the operations that write a checkpoint."""
    goal, half = int(r.integers(1, 50)), r.random() < 0.3
    calls = 0

    def watched(real: Callable) -> Callable:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == goal:
                if half and real.__name__ in ("save_file", "write_json"):
                    real(*given, **more)
                    place = Path(given[1] if real.__name__ == "save_file" else given[0])
                    os.truncate(place, int(r.integers(place.stat().st_size)))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)
        return call

    def work() -> None:
        for name in ("save_file", "write_json", "sha256", "scratch_dir"):
            setattr(saving, name, watched(getattr(saving, name)))
        loop.write_json = watched(loop.write_json)
        Path.rename = watched(Path.rename)  # type: ignore[method-assign]
        shutil.rmtree = watched(shutil.rmtree)  # type: ignore[assignment]
        toy(folder)

    code, said = bench.child(folder, work)
    assert code == -signal.SIGKILL or (code == 0 and calls < goal), said
    steps, last = sound(folder), [row["step"] for row in lines_so_far(folder)]
    assert max(steps, default=0) >= ((last[-1] if last else 0) - 1) // EVERY * EVERY, "a completed checkpoint is gone"
    if max(steps, default=0) > EVERY:
        assert [verify_checkpoint(p) for p in checkpoints(folder, "best")], "the best checkpoint is gone"
    bench.ends_as_whole(folder)


def lines_so_far(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []


def full_disk(bench: Bench, folder: Path, r: Random) -> None:
    """From some step on no file may grow beyond a few hundred or thousand bytes."""
    at, most = int(r.integers(STEPS)), int(10 ** r.uniform(1.5, 3.5))

    def fault(step: int) -> None:
        if step == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    before = at // EVERY * EVERY
    code, said = bench.child(folder, lambda: toy(folder, fault))
    if code:
        one_error(code, said, "cannot", "free some space")
        assert max(sound(folder), default=0) >= before, "a completed checkpoint is gone"
    bench.ends_as_whole(folder)


def half_run(bench: Bench, folder: Path, steps: int = 8) -> None:
    """A run of fewer steps; its checkpoints are those of the whole one."""
    code, said = bench.child(folder, lambda: toy(folder, lambda s: os.kill(os.getpid(), 9) if s == steps else None))
    assert code == -9, said


def spoil(path: Path, r: Random, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:int(r.integers(len(content)))]
    elif how == "bit flipped":
        place = int(r.integers(len(content)))
        content[place] ^= 1 << int(r.integers(8))
    else:
        start = int(r.integers(len(content)))
        content[start:start + 64] = r.bytes(64)
    path.write_bytes(bytes(content))


def damaged_checkpoint(bench: Bench, folder: Path, r: Random) -> None:
    """One or two files of the newest checkpoint, or of the best one, are truncated, flipped, overwritten or gone."""
    half_run(bench, folder)
    places = checkpoints(folder)
    place = places[-1] if r.random() < 0.8 else checkpoints(folder, "best")[-1]
    for name in r.choice([*FILES, "state.json"], size=int(r.integers(1, 3)), replace=False):
        how = ["truncated", "bit flipped", "overwritten", "gone"][r.integers(4)]
        (place / name).unlink() if how == "gone" else spoil(place / name, r, how)
    damaged = (place / "state.json").is_file() and (place not in places or step_of(place) not in sound(folder))
    said = bench.ends_as_whole(folder)
    assert not damaged or f"warning: the checkpoint {place} is damaged" in said, said


def all_checkpoints_damaged(bench: Bench, folder: Path, r: Random) -> None:
    half_run(bench, folder)
    for place in checkpoints(folder):
        spoil(place / FILES[r.integers(2)], r, "bit flipped")
    kept = {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    one_error(*bench.child(folder, lambda: toy(folder)), "is damaged", "delete its folder")
    assert all(p.read_bytes() == content for p, content in kept.items()), "a refused run changed the folder"
    shutil.rmtree(folder / "checkpoints")
    bench.ends_as_whole(folder)


def spoilt_small_file(bench: Bench, folder: Path, r: Random) -> None:
    """The log is torn, or another small file of the run is damaged."""
    half_run(bench, folder)
    path = folder / ["log.jsonl", "config.yaml", "run.json", "train.json"][r.integers(4)]
    if path.is_file():
        spoil(path, r, "truncated" if path.name == "log.jsonl" else "overwritten")
    else:
        path.write_bytes(r.bytes(50))
    if path.name == "log.jsonl":  # lines that are gone are gone, but the weights are not and the rest is well formed
        code, said = bench.child(folder, lambda: toy(folder))
        assert code == 0 and lines(folder)[-1] == lines(bench.whole)[-1], said
    else:
        bench.ends_as_whole(folder)


def not_finite(bench: Bench, folder: Path, r: Random) -> None:
    """Some losses are NaN or infinite: those steps change nothing; too many in a row end the run."""
    bad = {int(s) for s in r.choice(STEPS, size=int(r.integers(1, 8)), replace=False)}
    value = [float("nan"), float("inf"), float("-inf")][r.integers(3)]
    most = int(r.integers(1, 5))
    row = longest = stop = 0
    for step in range(STEPS):
        row = row + 1 if step in bad else 0
        longest = max(longest, row)
        if row > most and not stop:
            stop = step
    work = lambda: toy(folder, lambda step: value if step in bad else None, max_skipped=most)  # noqa: E731
    code, said = bench.child(folder, work)
    if longest > most:
        one_error(code, said, f"not finite at step {stop + 1}", "checkpoints so far are kept")
        assert max(sound(folder), default=0) == stop // EVERY * EVERY
    else:
        assert code == 0, said
        logged = lines(folder)
        assert {row["step"] - 1 for row in logged if "skipped" in row} == bad
        weights = load_file(trained_weights(folder))
        assert all(v.isfinite().all() for v in weights.values())


def clock_jumps(bench: Bench, folder: Path, r: Random) -> None:
    """The wall clock leaps years to and fro, and files carry any date; the run is killed besides."""
    at = int(r.integers(1, STEPS))
    jumps = np.random.default_rng(int(r.integers(2**31)))

    def work() -> None:
        real = time.time
        time.time = lambda: real() + jumps.uniform(-3e8, 3e8)
        toy(folder, lambda step: os.kill(os.getpid(), 9) if step == at else None)

    assert bench.child(folder, work)[0] == -9
    for path in folder.rglob("*"):
        when = float(r.uniform(0, 4e9))
        os.utime(path, (when, when))
    bench.ends_as_whole(folder)


def read_only(bench: Bench, folder: Path, r: Random) -> None:
    """A folder or a part of it may not be written; root is nobody for the while."""
    kind = ["the folder", "checkpoints", "best", "no folder can be made", "a file lies there"][r.integers(5)]
    if kind == "a file lies there":
        folder.write_text("in the way")
        one_error(*bench.child(folder, lambda: toy(folder)), "cannot")
        folder.unlink()
    elif kind == "no folder can be made":
        folder.mkdir(mode=0o555)
        one_error(*bench.child(folder, lambda: as_nobody(folder / "run")), "cannot", "out=")
        folder.chmod(0o755)
    else:
        half_run(bench, folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        target = folder if kind == "the folder" else folder / kind
        target.chmod(0o555)
        before = sound(folder)
        code, said = bench.child(folder, lambda: as_nobody(folder))
        if kind != "best" or code:  # it may be that none was better from there on
            one_error(code, said, "cannot")
        assert set(before) <= set(sound(folder)) or not code, "a completed checkpoint is gone"
        target.chmod(0o755)
    bench.ends_as_whole(folder)


def as_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    toy(folder)


def two_runs_in_one_folder(bench: Bench, folder: Path, r: Random) -> None:
    """While one run is at some step a second begins: it is told, and the first one ends as if alone."""
    at, gate = int(r.integers(STEPS)), folder.with_suffix(".gate")

    def hold(step: int) -> None:
        if step == at:
            gate.write_text("")
            while gate.exists():
                time.sleep(0.005)

    first = fork(lambda: toy(folder, hold), folder.with_suffix(".first"))
    while not gate.exists():
        time.sleep(0.005)
    second = bench.child(folder, lambda: toy(folder))
    gate.unlink()
    assert wait(first) == 0, folder.with_suffix(".first").read_text()
    one_error(*second, "another process is training", "out=")
    bench.ends_as_whole(folder)


def lost_process(bench: Bench, folder: Path, r: Random) -> None:
    """One of two or three processes dies: the others say so and end; the run goes on with another number of them."""
    world, at = int(r.integers(2, 4)), int(r.integers(1, STEPS))
    victim = int(r.integers(world))

    def work() -> None:
        rank = int(os.environ["RANK"])
        toy(folder, lambda step: os.kill(os.getpid(), 9) if (rank, step) == (victim, at) else None)

    said = folder.with_suffix(".said")
    codes = together(world, work, said)
    for rank, code in enumerate(codes):
        if rank != victim:
            one_error(code, (said / str(rank)).read_text(), "lost the others", "run the same command again")
    assert codes[victim] == -9 and max(sound(folder), default=0) == at // EVERY * EVERY
    again = int(r.integers(1, 4))
    codes = together(again, lambda: toy(folder), said)
    assert codes == [0] * again, (said / "0").read_text()
    one, other = (load_file(trained_weights(run)) for run in (bench.whole, folder))
    assert all(torch.allclose(one[k], other[k], atol=1e-5) for k in one)


def damaged_cache(bench: Bench, folder: Path, r: Random) -> None:
    """A file of cached features, or of an image set's rows, is damaged: noticed, made again, the same as before."""
    config = load_config(bench.tiny.game_config)
    clip = load_clip(config.clip.name)
    os.environ["DIXIT_CACHE"] = str(folder)
    try:
        def made() -> list[np.ndarray]:
            rows = data_module.load(config.data, "validation")
            return [np.array(patch_features(clip, rows, "grey")), image_embeddings(clip, rows, "colour").numpy(),
                    data_module.pixels(rows).numpy()]

        with redirect_stderr(io.StringIO()):
            before = made()
        files = [p for p in (*(folder / "features").glob("*.npy"), *(folder / "data").rglob("*.arrow"))]
        path = files[r.integers(len(files))]
        spoil(path, r, ["truncated", "bit flipped", "overwritten"][r.integers(3)])
        said = io.StringIO()
        with redirect_stderr(said):
            after = made()
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), f"{path.name} was used as it was"
        assert "is damaged; making it again" in said.getvalue()
    finally:
        os.environ["DIXIT_CACHE"] = str(bench.tiny.cache)


def bad_image(bench: Bench, folder: Path, r: Random) -> None:
    """Any kind of image file, whole or spoilt, becomes a square of RGB or an error of one line that names it."""
    folder.mkdir()
    kind = ["cmyk.jpg", "deep.png", "moving.gif", "grey.tif", "clear.png", "palette.png", "small.webp", "plain.bmp",
            "huge.png", "empty.png", "text.jpg", "one.png"][r.integers(12)]
    path, size = folder / kind, (int(r.integers(1, 60)), int(r.integers(1, 60)))
    noise = Image.fromarray(r.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if kind == "cmyk.jpg":
        noise.convert("CMYK").save(path)
    elif kind == "deep.png":
        Image.fromarray(r.integers(0, 65536, size, dtype=np.uint16)).save(path)
    elif kind == "moving.gif":
        noise.save(path, save_all=True, append_images=[noise.rotate(90)] * 3)
    elif kind == "clear.png":
        noise.putalpha(int(r.integers(256)))
        noise.save(path)
    elif kind == "palette.png":
        noise.convert("P").save(path, transparency=0)
    elif kind == "huge.png":
        Image.new("1", (9000, 9000)).save(path)
    elif kind == "empty.png":
        path.write_bytes(b"")
    elif kind == "text.jpg":
        path.write_bytes(r.bytes(int(r.integers(1, 500))))
    else:
        noise.save(path)
    if path.stat().st_size and r.random() < 0.6:
        spoil(path, r, ["truncated", "bit flipped", "overwritten"][r.integers(3)])
    try:
        made = data_module.open_image(path, 32)
        assert made.mode == "RGB" and made.size == (32, 32)
    except DixitError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error), error


UNICODE = [(0x20, 0x7F), (0xA0, 0x17F), (0x370, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0x4E00, 0x4E80),
           (0x1F300, 0x1F650), (0x200B, 0x2070), (0xFE00, 0xFE10), (0x1D400, 0x1D440), (0, 0x20), (0xE000, 0xE010),
           (0x10FF00, 0x10FFFE)]


def any_caption(bench: Bench, folder: Path, r: Random) -> None:
    """A caption of any characters goes through tokenizers, listeners, measures and the page."""
    from eval import drift, report

    blocks = [UNICODE[i] for i in r.integers(len(UNICODE), size=int(r.integers(1, 4)))]
    text = "".join(chr(int(r.integers(*blocks[r.integers(len(blocks))]))) for _ in range(int(r.integers(0, 60))))
    texts = [text, text.upper(), f"a red {text} circle"]
    speaker, listeners, rows = bench_models(bench)
    tokens, mask = speaker.encode(texts)
    assert tokens.shape == mask.shape and tokens.shape[1] <= speaker.config.max_tokens
    speaker.decode(tokens, mask)
    logits = score_all(listeners, texts, torch.arange(12).reshape(3, 4))
    assert logits.isfinite().all()
    known = [["a red circle"]] * 3
    assert drift.cider_d(texts, known).isfinite().all() and drift.bleu_4(texts, known) >= 0
    drift.claims(text), drift.no_doubled_word(texts), drift.full_stop(texts)
    page = report.as_html(f"| a |\n|---|\n| {text.translate({10: 32, 13: 32})} |") if "|" not in text else ""
    assert "<script" not in page.lower()
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text(text, encoding="utf-8")
    got = caption_lines((folder / "a.txt").read_text(encoding="utf-8").splitlines())
    assert all(t == " ".join(t.split()) and t for t in got)


_MODELS: dict[Path, tuple] = {}


def bench_models(bench: Bench) -> tuple:
    if bench.root not in _MODELS:
        from dixit.models.speaker import Speaker
        from dixit.training.runs import make_listeners

        config = load_config(bench.tiny.game_config)
        rows = data_module.load(config.data, "validation")
        german = replace(config.listeners[0], language="german")
        _MODELS[bench.root] = (Speaker(config.speaker, 16, 64), make_listeners((*config.listeners, german), rows), rows)
    return _MODELS[bench.root]


def failing_listener(bench: Bench, folder: Path, r: Random) -> None:
    """A listener raises, returns NaN or infinity in the middle of a game; mended, the game ends as if it had not."""
    from dixit.models.listeners import ClipListener

    config, at = bench.tiny.game_config, int(r.integers(3, 9))
    words = ["train.steps=4", "train.save_every=1", "train.eval_every=100", "train.max_skipped=1"]
    whole = bench.root / "whole_game"
    if not whole.exists():
        with redirect_stderr(io.StringIO()):
            train_here(config, whole, *words)
    value = [None, float("nan"), float("inf")][r.integers(3)]

    def work() -> None:
        score, asked = ClipListener.score, 0

        def broken(self: ClipListener, *given: Any) -> torch.Tensor:
            nonlocal asked
            asked += 1
            if asked < at:
                return score(self, *given)
            if value is None:
                raise RuntimeError("the listener\nhas gone")
            return score(self, *given) * value

        ClipListener.score = broken  # type: ignore[method-assign]
        train_here(config, folder, *words)

    code, said = bench.child(folder, work)
    if value != float("inf") or code:  # a last step alone may be skipped
        one_error(code, said, "not finite" if value == float("inf") and "NaN" not in said else "listener")
    code, said = bench.child(folder, lambda: train_here(config, folder, *words))
    assert code == 0, said
    one, other = (load_file(trained_weights(run)) for run in (whole, folder))
    if value != float("inf"):  # there a step may have been skipped before the run was ended
        assert all(torch.equal(one[k], other[k]) for k in one)
