"""The protocol of a task: what the training loop (loop.py) asks of whatever is trained."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """What is trained and how. `trained` holds exactly the trained parameters."""

    trained: nn.Module

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures of one micro-batch of a step: means over this process's share of it."""

    def after_step(self, step: int) -> None:
        """Changes weights outside the optimiser, right after its step; most tasks do nothing."""
        return None

    def validate(self, step: int) -> dict[str, float]:
        """Figures on the validation split."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights, as JSON values; most tasks need nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        return None
