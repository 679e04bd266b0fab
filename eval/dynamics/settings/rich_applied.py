"""Settings of the probe rich_applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dixit.data.assets import asset

from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings:
    """All [stand-in]."""

    alphas: Annotated[tuple[float, ...], Within("[0.01, 100]", "[1, 6]")] = (0.1, 1.0, 10.0)  # 1 is among them
    images: Annotated[int, Within("[0, 50000]")] = 2000  # of CIFAR-10; 0: no CNN
    test_images: Annotated[int, Within("[20, 10000]")] = 500
    channels: Annotated[int, Within("[8, 256]")] = 16
    kernel: Annotated[int, Within("[3, 25]")] = 7
    image_batch: Annotated[int, Within("[1, 50000]")] = 64  # at most images
    image_lr: Annotated[float, Within("[0.001, 0.2]")] = 0.1
    image_steps: Annotated[int, Within("[10, 1000000]")] = 1000
    levels: Annotated[int, Within("[1, 4]")] = 3  # of the grammar; two symbols for each
    symbols: Annotated[int, Within("[2, 16]")] = 6  # of every level; also the number of classes
    synonyms: Annotated[int, Within("[1, 16]")] = 3  # at most symbols
    sizes: Annotated[tuple[int, ...], Within("[1, 1000000]", "[1, 20]")] = (128, 256, 512, 1024, 2048)  # training sets
    test_sentences: Annotated[int, Within("[20, 100000]")] = 500
    hidden: Annotated[int, Within("[8, 1024]")] = 64
    batch: Annotated[int, Within("[1, 10000]")] = 64
    grammar_lr: Annotated[float, Within("[0.001, 0.3]")] = 0.2
    grammar_steps: Annotated[int, Within("[10, 1000000]")] = 2000
    wrong: Annotated[float, Within("(0, 0.8]")] = 0.3  # the test error that counts as learned
    # none: no transformer
    grok_alphas: Annotated[tuple[float, ...], Within("[0.01, 100]", "[0, 6]")] = (0.3, 1.0, 3.0, 10.0)
    modulus: Annotated[int, Within("[5, 200]")] = 31
    share: Annotated[float, Within("[0.1, 0.9]")] = 0.8  # of the pairs are trained on
    width: Annotated[int, Within("[4, 1024]")] = 32  # a multiple of heads
    heads: Annotated[int, Within("[1, 64]")] = 2
    units: Annotated[int, Within("[4, 4096]")] = 128
    gain: Annotated[float, Within("[0.1, 2]")] = 0.6  # of its weights at the start
    grok_lr: Annotated[float, Within("[0.001, 0.5]")] = 0.25  # alpha = 10 still oscillates, less than at 0.5
    grok_steps: Annotated[int, Within("[1, 1000000]")] = 1600
    grok_every: Annotated[int, Within("[1, 10000]")] = 20
    right: Annotated[float, Within("[0.1, 1]")] = 0.9  # the accuracy on held-out pairs that counts as grokked


TINY = Settings(images=0, sizes=(256, 512), test_sentences=200, grammar_steps=300, grok_alphas=())


def derivations(settings: Settings) -> int:
    """The number of sentences of the grammar."""
    return settings.symbols * settings.synonyms ** (2 ** settings.levels - 1)


MOST = 10**7  # sentences of a grammar, all of which are shuffled
FEWEST = 20  # pairs that are trained on, or held out


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together, and if the images are missing."""
    s, many = settings, derivations(settings)
    refuse(1.0 not in s.alphas, "alphas", s.alphas, "1 must be among them: the other speeds are matched to it")
    refuse(s.synonyms > s.symbols, "synonyms", s.synonyms, f"there are not enough pairs of symbols; choose at most "
                                                           f"symbols = {s.symbols}")
    refuse(many > MOST, "synonyms", s.synonyms,
           f"the grammar has {many} sentences; choose fewer synonyms or levels, for at most {MOST}")
    pairs = s.modulus ** 2 * min(s.share, 1 - s.share)
    refuse(bool(s.grok_alphas) and pairs < FEWEST, "share", s.share,
           f"only {pairs:.0f} of the {s.modulus ** 2} pairs are trained on, or held out; choose a larger modulus, or a "
           f"share that leaves {FEWEST}")
    refuse(max(s.sizes) + s.test_sentences > many, "sizes", s.sizes,
           f"the grammar has {many} sentences; choose at most {max(0, many - s.test_sentences)}, or more synonyms")
    refuse(s.width % s.heads != 0, "width", s.width, f"choose a multiple of heads = {s.heads}")
    refuse(0 < s.images < s.image_batch, "image_batch", s.image_batch, f"choose at most images = {s.images}")
    if s.images:
        asset("cifar10")
