"""What every check of an exercise says, and how it reads an answer. Knows nothing about preferences.

A check prints one line that begins with "Right:" or raises `NotYet`, whose message says what is wrong, with the
value that was found, and what to try, and never the solution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np


class NotYet(AssertionError):
    """The answer isn't right yet. The message says what was found, and what to try."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook: the message alone, without the inside of the check."""
        return [f"Not yet. {self}"]


def right(shows: str) -> None:
    """Say that an answer is right, and what it shows."""
    print(f"Right: {shows.rstrip('.')}.")


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the reader's function returns; one that is empty, or fails, gets a message instead of a long traceback."""
    if not callable(function):
        raise NotYet(f"This check needs a function, and got {_shorten(function)}. Give it the name without brackets.")
    name = getattr(function, "__name__", "the function")
    try:
        answer = function(*arguments, **named)
    except NotImplementedError as error:
        raise NotYet(f"`{name}` is still empty: replace `raise NotImplementedError()` with your lines.") from error
    except NotYet:
        raise
    except Exception as error:
        raise NotYet(
            f"`{name}` stopped with {type(error).__name__}: {error}. Run it by itself to see where."
        ) from error
    if answer is None:
        raise NotYet(f"`{name}` returned nothing. Does it end with `return`?")
    return answer


def as_number(answer: Any, name: str = "the answer") -> float:
    """One finite number, from a Python number, a numpy value or a tensor with one element."""
    array = as_array(answer, name)
    if array.size != 1:
        raise NotYet(f"{name} should be one number, and has shape {array.shape}. Is a sum or a mean missing?")
    return float(array.reshape(()))


def as_array(answer: Any, name: str = "the answer", shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Finite float64 values, of the requested shape, from numbers, lists, arrays or tensors."""
    if answer is None or answer is ...:
        raise NotYet(f"{name} isn't there yet: it is {answer!r}.")
    if hasattr(answer, "detach"):  # a tensor, known without loading torch
        answer = answer.detach().cpu().double()
    try:
        array = np.asarray(answer, np.float64)
    except (TypeError, ValueError) as error:
        raise NotYet(f"{name} should be numbers, and is {_shorten(answer)}.") from error
    if shape is not None and array.shape != shape:
        raise NotYet(f"{name} should have shape {shape}, and has {array.shape}. Which axis did you sum or shift?")
    if not np.isfinite(array).all():
        raise NotYet(
            f"{name} should be finite, and holds nan or inf: {_shorten(answer)}. Is there a log or a quotient of 0?"
        )
    return array


def close(found: Any, expected: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    """Whether two answers are the same numbers; False where their shapes differ."""
    found, expected = as_array(found), as_array(expected)
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=rtol, atol=atol))


def as_parts(answer: Any, num: int, what: str) -> list[Any]:
    """The `num` things that a function returned together; `what` names them, with their number."""
    if not isinstance(answer, tuple | list | np.ndarray) or len(answer) != num:
        raise NotYet(f"Your function gave {_shorten(answer)}; return {what}.")
    return list(answer)


def as_truth(answer: Any, name: str) -> bool:
    """True or False, from Python or numpy."""
    if not isinstance(answer, bool | np.bool_):
        raise NotYet(f"{name} gave {answer!r}; it should say True or False.")
    return bool(answer)


def hint_for(found: Any, mistakes: dict[str, Any], otherwise: str = "", near: Callable[[Any, Any], Any] = close) -> str:
    """The message of the first usual mistake whose value was found, as `near` compares them, or `otherwise`."""
    return next((message for message, wrong in mistakes.items() if near(found, wrong)), otherwise)


def expect(
    found: Any, expected: Any,
    *, name: str = "the answer", instead: dict[str, Any] | None = None, otherwise: str = "", rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:  # fmt: skip
    """Raise `NotYet` unless `found` is `expected`.

    `instead` maps a message to the value that the usual mistake gives: the first that fits is shown. Where none fits,
    the message is `otherwise`. Messages never hold the expected value.
    """
    found = as_array(found, name, np.shape(as_array(expected)))
    if close(found, expected, rtol=rtol, atol=atol):
        return
    if hint := hint_for(found, instead or {}, near=partial(close, rtol=rtol, atol=atol)):
        raise NotYet(f"{name} is {_shorten(found)}. {hint}")
    raise NotYet(f"{name} is {_shorten(found)}, which isn't right. {otherwise}".rstrip())


def _shorten(value: Any) -> str:
    """A value as a message shows it: short, and rounded."""
    if isinstance(value, np.ndarray):
        shown = np.array2string(value, precision=4, threshold=8, edgeitems=3, separator=", ")
        return " ".join(shown.split()).removesuffix(".")  # of a whole number: a full stop may follow
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
