"""Settings of the probe unimodal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dixit.data.assets import asset

from ..ranges import Within, refuse
from ..theory.unimodal import covariance, deep_curvatures, half_events, half_times, xor_rate


@dataclass(frozen=True)
class Settings:
    """The values of the paper's code where it has one; steps, and what the module marks [stand-in], are ours."""

    # r = sigma_A / sigma_B, sigma_B = 1; where the variances are equal neither modality is first
    ratios: Annotated[tuple[float, ...], Within("[1.2, 4]", "[1, 10]")] = (1.5, 2.0, 3.0)
    rhos: Annotated[tuple[float, ...], Within("[-0.95, 0.95]", "[1, 20]")] = (-0.45, 0.0, 0.45, 0.9)  # of A and B
    # e: uncorrelated tasks with w_A / w_B = r^-e; 1 to 2 is the strip, and e is at least 0.2 from its edges
    exponents: Annotated[tuple[float, ...], Within("[0.1, 3]", "[0, 20]")] = (0.5, 1.5, 2.5)
    hidden: Annotated[int, Within("[20, 1000]")] = 100  # of each modality
    init: Annotated[float, Within("[1e-15, 1e-6]")] = 1e-9  # standard deviation of two-layer weights
    steps: Annotated[int, Within("[100, 1000000]")] = 4000  # enough of them for the largest ratio and correlation
    every: Annotated[int, Within("[1, 100]")] = 10  # steps between records
    relu_ratio: Annotated[float, Within("[1.2, 4]")] = 2.0
    relu_rhos: Annotated[tuple[float, ...], Within("[-0.95, 0.95]", "[1, 20]")] = (-0.45, 0.0, 0.45)
    relu_hidden: Annotated[int, Within("[20, 1000]")] = 50
    # of the Gaussian modality beside XOR
    variances: Annotated[tuple[float, ...], Within("[0.1, 5]", "[1, 20]")] = (0.35, 0.7, 1.4, 2.8)
    relu_steps: Annotated[int, Within("[100, 1000000]")] = 4000
    depth: Annotated[int, Within("[2, 6]")] = 4
    deep_ratio: Annotated[float, Within("[1.2, 4]")] = 2.0
    deep_rho: Annotated[float, Within("[-0.6, 0.6]")] = 0.0
    deep_hidden: Annotated[int, Within("[4, 1000]")] = 50
    deep_start: Annotated[float, Within("[0.001, 0.2]")] = 0.1  # u0, the norm of every layer of one modality
    deep_time: Annotated[float, Within("[1, 1e9]")] = 360.0  # of networks with random weights
    deep_steps: Annotated[int, Within("[100, 10000000]")] = 5000
    dimensions: Annotated[int, Within("[5, 200]")] = 50  # of each modality, where data are few
    samples: Annotated[tuple[int, ...], Within("[5, 100000]", "[1, 10]")] = (70, 700)
    noise: Annotated[float, Within("[0.3, 1]")] = 0.5
    sample_lr: Annotated[float, Within("[0.001, 0.1]")] = 0.04
    sample_steps: Annotated[int, Within("[10, 1000000]")] = 1200
    # L_f of the MNIST networks of 4 layers; none: no images are needed
    digit_fusions: Annotated[tuple[int, ...], Within("[1, 4]", "[0, 4]")] = (1, 2, 3, 4)
    digit_hidden: Annotated[int, Within("[8, 2000]")] = 64
    digit_batch: Annotated[int, Within("[1, 10000]")] = 64  # at most all images of training
    digit_lr: Annotated[float, Within("[0.001, 0.2]")] = 0.1
    digit_steps: Annotated[int, Within("[1, 1000000]")] = 1200
    digit_every: Annotated[int, Within("[1, 10000]")] = 10
    per_class: Annotated[int, Within("[10, 5000]")] = 500  # images; the last tenth is held out


TINY = Settings(ratios=(2.0,), rhos=(0.0, 0.45), exponents=(0.5, 1.5), steps=1200, relu_rhos=(0.0,), relu_hidden=30,
                variances=(0.7, 2.8), relu_steps=1000, depth=3, deep_hidden=10, deep_start=0.03,
                deep_time=130.0, deep_steps=1200, dimensions=20, samples=(30, 300), sample_lr=0.1, sample_steps=700,
                digit_fusions=())


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together, steps that are too long, and missing images."""
    s = settings
    edges = [e for e in s.exponents for edge in (1, 2) if abs(e - edge) < 0.2]
    refuse(bool(edges), "exponents", s.exponents, "choose numbers that are at least 0.2 from 1 and from 2, where two "
                                                  "modalities are alike")
    late = [two_layers(s, r, rho, w) for r in s.ratios for rho, w in [*((rho, 1.0) for rho in s.rhos),
                                                                     *((0.0, r ** -e) for e in s.exponents)]]
    relu = [two_layers(s, s.relu_ratio, rho, 1.0) for rho in s.relu_rhos]
    ends = [1.4 * np.log(1 / s.init) / min(v / 2, xor_rate(np.pi / 4 * 3)) * max(v, 1) for v in s.variances]
    deep = [layers(s, fusion) for fusion in range(1, s.depth + 1)]
    slow = max(deep_curvatures(s.depth, f, s.deep_ratio, s.deep_rho)[1] for f in range(1, s.depth + 1))
    for name, steps, grown in (  # enough steps, and growth in a record each step
            ("steps", max(one for one, _ in late), max(one for _, one in late)),
            ("relu_steps", max(4 * max(ends), *(2 * one for one, _ in relu)),
             max(max(ends) * 2 / 3, *(one for _, one in relu))),
            ("deep_steps", max(s.deep_time * slow / 1.75, *(one for one, _ in deep)), max(one for _, one in deep))):
        given = getattr(s, name)
        refuse(bool(given < steps), name, given, f"steps of this size are unstable; choose at least {int(steps) + 1}")
        most = max(1, int(2 * given / grown))
        refuse(s.every > most, "every", s.every,
               f"records of these {name} are too far apart for half-times; choose at most {most}, or more {name}")
    curved = s.sample_lr * max(sample_curvature(s, count) for count in s.samples)
    refuse(curved > 1.5, "sample_lr", s.sample_lr,
           f"steps on these samples and dimensions are unstable; choose at most {s.sample_lr * 1.5 / curved:.3g}")
    refuse(bool(s.digit_fusions) and s.digit_batch > 8 * (s.per_class * 9 // 10), "digit_batch", s.digit_batch,
           f"choose at most the number of images, {8 * (s.per_class * 9 // 10)}")
    if s.digit_fusions:
        asset("mnist")


def two_layers(settings: Settings, ratio: float, rho: float, w: float) -> tuple[float, float]:
    """The number of steps with which the second half of a run of `late_net` is stable; and the growth (rate times time)
    of a modality that is half learned between two records, times steps over every."""
    sigma, target = covariance(ratio, rho), np.array([w, 1.0])
    times = half_times(sigma, target, np.full(2, np.log(settings.hidden * settings.init ** 2 / 2)))
    rates, i = np.linalg.eigvals(sigma * target).real, int(np.argmin(times))
    left = target[1 - i] * (sigma[1 - i, 1 - i] - sigma[0, 1] ** 2 / sigma[i, i])  # the second rate, after the first
    first, last = 1.25 * times[i], times[1 - i] + 3.5 / rates.min() - 1.25 * times[i]
    return float(4 * last * rates.max()), float(4 * max(first * (target @ sigma)[i], last * left))


def layers(settings: Settings, fusion: int) -> tuple[float, float]:
    """The same of a balanced deep network."""
    case = settings.depth, fusion, settings.deep_ratio, settings.deep_rho
    times, growth = half_events(settings.deep_start, *case)
    halves = 2 * np.array([1.25 * times[0], 1.4 * times[1] + 5 - 1.25 * times[0]])
    return float((halves * deep_curvatures(*case)).max() / 1.75), float((halves * growth).max())


def sample_curvature(settings: Settings, count: int) -> float:
    """About the largest curvature of two layers that have learned `sample_task` from this many samples.

    |b| times the largest second moment (Marchenko and Pastur), plus the mean square of the answers over |b|, where b is
    what of the weights lies in the span of the samples."""
    d, noise = settings.dimensions, settings.noise
    size = (0.02 * d * min(1.0, count / (2 * d))) ** 0.5
    return float(4 * size * (1 + (d / count) ** 0.5) ** 2 + (0.04 * d + noise ** 2) / size)
