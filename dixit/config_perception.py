"""How a config says what a listener sees: a name, or a chain of names and of steps with a strength.

Leaves out what they do to pixels (models/perception.py, models/perception_steps.py) and the ranges of strengths
(config_checks.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dixit.common import DixitError

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height


@dataclass(frozen=True)
class PerceptionStep:
    """One step of a chain, by its strength: just one of these keys is given. Pixels are those of data.image_size."""

    blur: float | None = None  # standard deviation, in pixels
    jpeg: int | None = None  # quality; 1 is worst
    crop: Box | None = None  # the only part that is seen; the rest is grey
    occlude: Box | None = None  # a part that is hidden behind grey
    rotate_hue: float | None = None  # degrees
    colour_blind: str | None = None  # protan | deutan | tritan: which cones are missing
    cataract: float | None = None  # 1 is worst
    noise: float | None = None  # standard deviation, where black is 0 and white 1
    downsample: int | None = None  # pixels of the height that are left
    contrast: float | None = None  # what is left of it; 0 is a flat grey

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are given, with their strengths."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        """E.g. "blur 3" or "crop 0 0 1 0.5"."""
        def words(key: str, value: Any) -> str:
            parts = value if isinstance(value, tuple) else (value,)
            return " ".join([key, *(part if isinstance(part, str) else f"{part:g}" for part in parts)])

        return ", ".join(words(key, value) for key, value in self.given.items())


Perception = str | tuple[str | PerceptionStep, ...]
STEPS = tuple(field.name for field in dataclasses.fields(PerceptionStep))


def perception_label(perception: Perception) -> str:
    """A perception in a few words: its name, or the steps of a chain in their order, e.g. "blur 3 + jpeg 5"."""
    return perception if isinstance(perception, str) else " + ".join(map(str, perception))


def check_perception(where: str, perception: Perception) -> None:
    """Raises DixitError, with key and remedy, if a step has no strength, a chain is empty, an item of it is no step or
    several, or a box has no inside. `where` is the dotted key."""
    alone = isinstance(perception, str)
    items = {where if alone else f"{where}[{i}]": step for i, step in enumerate([perception] if alone else perception)}
    if not items:
        raise DixitError(f"config: {where} is empty; give it a name, e.g. colour, or steps, e.g. [{{blur: 3}}, "
                         "{jpeg: 5}]")
    for place, step in items.items():
        if not isinstance(step, PerceptionStep):
            if step in STEPS and step != "blur":  # blur is the name of a perception too
                form = f"{{{step}: STRENGTH}}"
                raise DixitError(f"config: {place} is '{step}', a step that needs a strength; write "
                                 f"{f'[{form}]' if alone else form}")
        elif len(step.given) != 1:
            has = f"has {' and '.join(step.given)} in one item" if step.given else "gives no step a strength"
            raise DixitError(f"config: {place} {has}; write each step as an item, e.g. [{{blur: 3}}, {{jpeg: 5}}]")
        else:
            (key, box), = step.given.items()
            if key in ("crop", "occlude") and not (box[0] < box[2] and box[1] < box[3]):
                raise DixitError(f"config: {place}.{key} is {list(box)}, which has no inside; give left, top, right "
                                 "and bottom, e.g. [0, 0, 1, 0.5] for the upper half")
