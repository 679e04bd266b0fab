"""The protocol of a task: what the training loop (loop.py) asks of whatever is trained."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """What a training must provide. `trained` holds exactly the trained parameters."""

    trained: nn.Module

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures of micro-batch `part` of `step`: means over this process's share of the batch."""

    def after_step(self, step: int) -> None:
        """What changes weights besides the optimiser, right after its step; most tasks have nothing."""
        return None

    def validate(self, step: int) -> dict[str, float]:
        """Figures on the validation split."""

    def state(self) -> dict[str, Any]:
        """Whatever else must survive a resume; most tasks have nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
