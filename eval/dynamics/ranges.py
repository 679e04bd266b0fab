"""The legitimate settings of a probe.

Each field of a probe's Settings is annotated with the numbers (`Within`) or words (`OneOf`) that it may have, and
`check_settings` refuses others before anything is computed. What settings must fulfil together is in the probe's own
function `check(settings)`; settings that are legitimate but have no theory change its claims (`probe.skipped`).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any

from dixit.common import DixitError, did_you_mean
from dixit.config_checks import is_inside


@dataclass(frozen=True)
class Within:
    """Numbers in an interval such as "(0, 1]"; in a list, each larger than the one before, unless `rising` is false.

    `count` is the interval of the number of entries of a list.
    """

    interval: str
    count: str = "[1, 1000]"
    rising: bool = True


@dataclass(frozen=True)
class OneOf:
    """A list of some of these words, none of them twice; it may be empty."""

    words: tuple[str, ...]


def legitimate(kind: Any) -> dict[str, Within | OneOf]:
    """The range of each annotated field of a class of settings."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(kind)
            if typing.get_origin(hints[field.name]) is Annotated}


def check_settings(settings: Any) -> None:
    """Raises DixitError, which names the setting and the remedy, for one that is out of its range.

    A number without a range must have the sign of its default.
    """
    ranges = legitimate(type(settings))
    for field in fields(settings):
        value, allowed = getattr(settings, field.name), ranges.get(field.name)
        if isinstance(allowed, OneOf):
            _check_words(field.name, value, allowed)
        else:
            _check_numbers(field.name, value, allowed or _by_sign(field.default))


def refuse(wrong: bool, setting: str, value: Any, remedy: str) -> None:
    """Raises DixitError if settings do not go together: which of them, its value, and what to choose."""
    if wrong:
        raise DixitError(f"config: {setting} is {_shown(value)}; {remedy}")


def _check_numbers(name: str, value: Any, allowed: Within) -> None:
    if isinstance(value, tuple):
        refuse(not is_inside(len(value), allowed.count), name, value,
               f"choose a list whose length is in {allowed.count}")
    for number in _numbers(value):
        refuse(not is_inside(number, allowed.interval), name, value,
               f"choose {'numbers' if isinstance(value, tuple) else 'a number'} in {allowed.interval}")
    if isinstance(value, tuple) and allowed.rising and not any(isinstance(x, tuple) for x in value):
        refuse(any(x >= y for x, y in zip(value, value[1:], strict=False)), name, value,
               "sort it; each number must be larger than the one before")


def _check_words(name: str, value: tuple[str, ...], allowed: OneOf) -> None:
    for word in value:
        refuse(word not in allowed.words, name, value, did_you_mean(word, allowed.words))
    refuse(len(set(value)) < len(value), name, value, "name each once")


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _by_sign(default: Any) -> Within:
    numbers = list(_numbers(default))
    if not numbers or min(numbers) < 0:
        return Within("(-inf, inf)", "[0, inf)", rising=False)
    whole = all(isinstance(x, int) for x in numbers)
    return Within("[1, 1000000000]" if whole and min(numbers) > 0 else "[0, 1000000000]", "[0, inf)", rising=False)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
