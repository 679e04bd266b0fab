"""Settings of the probe geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..ranges import Within, refuse
from ..theory.geometry import hidden_kernel, inputs


@dataclass(frozen=True)
class Settings:
    """The values of the paper's code, except for those marked [stand-in]."""

    hidden: Annotated[int, Within("[50, 200]")] = 100
    # of the weights; the sweep, rich to lazy: from 0.02 at most to 2 at least
    input_stds: Annotated[tuple[float, ...], Within("(0, 4]", "[2, 30]")] = (0.01, 0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0)
    context_stds: Annotated[tuple[float, ...], Within("[0.2, 3]", "[2, 30]", rising=False)] = (
        0.5, 0.5, 0.5, 0.5, 0.5, 0.8, 1.35, 1.5)  # one for each of input_stds
    readout_std: Annotated[float, Within("[0.001, 0.02]")] = 0.01
    bias: Annotated[float, Within("[0.01, 0.2]")] = 0.1  # at the start
    lr: Annotated[float, Within("[0.0005, 0.005]")] = 0.005
    steps: Annotated[int, Within("[1, 1000000]")] = 10_000
    every: Annotated[int, Within("[1, 100]")] = 4
    # L2 on the weights of the laziest networks
    penalties: Annotated[tuple[float, ...], Within("[0.001, 1]", "[0, 30]")] = (0.1,)
    flow_lr: Annotated[float, Within("[0.0001, 0.0012]")] = 0.001  # [stand-in]
    flow_steps: Annotated[int, Within("[1, 1000000]")] = 4500
    untrained: Annotated[int, Within("[50, 10000]")] = 400  # networks for the mean RDM
    noise: Annotated[float, Within("[0.05, 1]")] = 0.25  # [stand-in] of decoders, over the rms distance from the mean


TINY = Settings(input_stds=(0.01, 3.0), context_stds=(0.5, 1.5), steps=1400, penalties=(0.4,), flow_lr=0.0012,
                flow_steps=2500)


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together."""
    s = settings
    refuse(len(s.context_stds) != len(s.input_stds), "context_stds", s.context_stds,
           f"choose {len(s.input_stds)} numbers, one for each of input_stds")
    refuse(s.input_stds[0] > 0.02 or s.input_stds[-1] < 2, "input_stds", s.input_stds,
           "the first is the rich end and the last the lazy one: go from 0.02 at most to 2 at least")
    scales = np.repeat([s.input_stds[-1], s.context_stds[-1]], [25, 2])  # of the weights from pixels and from context
    steepest = np.linalg.eigvalsh(s.hidden * hidden_kernel(inputs(), scales, s.bias) + 1)[-1]
    most = 2 / steepest / (1 + 6 / s.hidden ** 0.5)  # 3.5 standard deviations of a network's own
    refuse(bool(s.flow_lr > most), "flow_lr", s.flow_lr, f"with a frozen hidden layer of this width and scale the loss "
                                                         f"grows at each step; choose at most {most:.3g}")
