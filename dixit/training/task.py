"""The protocol of a task: the methods that the training loop (loop.py) calls."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """A training. `trained` is the module with exactly the trained parameters."""

    trained: nn.Module

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures of one micro-batch of a step: means over this process's share of it."""

    def after_step(self, step: int) -> None:
        """Change weights after the optimiser's step; most tasks do nothing."""
        return None

    def validate(self, step: int) -> dict[str, float]:
        """Figures on the validation split."""

    def said(self, step: int) -> list[dict[str, Any]]:
        """Captions to look at, a row each (said.py); none for most tasks."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """The state, other than weights, that resuming needs, as JSON values; empty for most tasks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        return None
