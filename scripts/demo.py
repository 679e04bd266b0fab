"""Talk with a trained speaker: `python scripts/demo.py RUN`.

Give the path of any image, or the number of a test image. You see the captions of the base and the trained
speaker and, for each listener, what it picks among distractors and which words moved it (each word's effect on
its log-probability of the target, by leaving the word out).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import datasets
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dixit import game  # noqa: E402
from dixit.common import DixitError, run_main  # noqa: E402
from dixit.data import load, open_image, pixels  # noqa: E402
from dixit.listeners import ClipListener  # noqa: E402
from dixit.runs import LoadedRun, load_run  # noqa: E402

HELP = "an image path, a number of a test image, or q to leave"
BAR = 24


def round_listeners(run: LoadedRun, images: torch.Tensor, heldout: bool) -> dict[str, ClipListener]:
    """Listeners that look at just these images."""
    from dixit.clip import load_clip
    made = {}
    for c in run.config.heldout if heldout else run.config.listeners:
        clip = load_clip(c.clip, c.pretrained)
        made[c.name] = ClipListener(clip, clip.embed_images(images, c.perception), c)
    return made


def words_that_moved(listener: ClipListener, text: str, candidates: torch.Tensor) -> list[tuple[str, float]]:
    """Each word with the fall of log p(target) when it is left out, largest first."""
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1:]) or "picture" for i in range(len(words))]
    logits = listener.score([text, *without], candidates.expand(len(without) + 1, -1))
    logp = game.target_logp(logits[None])[0]
    return sorted(zip(words, (logp[0] - logp[1:]).tolist(), strict=True), key=lambda pair: -abs(pair[1]))


def play(run: LoadedRun, target: str, pool: datasets.Dataset, heldout: bool, r: np.random.Generator) -> None:
    """One round, printed."""
    size, c = run.config.data.image_size, run.config.game.candidates
    if target.isdigit():
        if int(target) >= len(pool):
            raise DixitError(f"there are only {len(pool)} test images; give a number from 0 to {len(pool) - 1}")
        image = pixels(pool, [int(target)])
    else:
        picture = open_image(Path(target).expanduser(), size)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    others = [int(i) for i in r.permutation(len(pool)) if str(i) != target][: c - 1]
    images = torch.cat([image, pixels(pool, others)])
    names = ["the target", *[f"test image {i}" for i in others]]
    patches = run.clip.patches(image, "colour")
    captions = {"trained": run.speaker.say(patches, samples=3, seed=int(r.integers(2**31)))[0]}
    if run.base is not None:
        trained, run.speaker.trained = run.speaker.trained, run.base
        captions = {"base": run.speaker.say(patches)[0], **captions}
        run.speaker.trained = trained
    listeners = round_listeners(run, images, heldout)
    candidates = torch.arange(len(images))[None]
    for who, said in captions.items():
        print(f"\n{who} speaker: {said[0]}")
        if said[1:]:
            print("  also sampled: " + " | ".join(said[1:]))
        for name, listener in listeners.items():
            belief = listener.score(said[:1], candidates)[0].softmax(0)
            pick = int(belief.argmax())
            print(f"  {name:>8} picks {names[pick]:<16} {'#' * round(BAR * float(belief[pick])):<{BAR}} "
                  f"{belief[pick]:.2f}   (target {belief[0]:.2f})")
            moved = words_that_moved(listener, said[0], candidates)[:4]
            print("           words: " + "  ".join(f"{word} {effect:+.2f}" for word, effect in moved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, e.g. runs/colour_vs_grey")
    parser.add_argument("image", nargs="*", help="play these and leave, instead of asking")
    parser.add_argument("--heldout", action="store_true", help="the held-out listeners instead of the training ones")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    pool = load(run.config.data, "test")
    r = np.random.default_rng(0)
    if arguments.image:
        for target in arguments.image:
            play(run, target, pool, arguments.heldout, r)
        return
    print(f"{run.config.name}: {HELP}")
    while True:
        try:
            target = input("> ").strip()
        except EOFError:
            return
        if target in ("q", "quit", "exit"):
            return
        if target:
            try:
                play(run, target, pool, arguments.heldout, r)
            except DixitError as error:  # a bad path must not end the session
                print(f"error: {error}")


if __name__ == "__main__":
    run_main(main)
