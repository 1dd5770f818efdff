"""Questions about a scene that need finding and reading its digits, with one-word answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, IMAGE_SIZE, Digit

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)

T = TypeVar("T")
Digits = Sequence[Digit]
Side = Callable[[Digit], float]

SIDES: dict[str, Side] = {
    "leftmost": lambda digit: digit.x,
    "rightmost": lambda digit: -digit.x,
    "topmost": lambda digit: digit.y,
    "bottommost": lambda digit: -digit.y,
}
CORNERS: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top right": (IMAGE_SIZE, 0),
    "bottom left": (0, IMAGE_SIZE),
    "bottom right": (IMAGE_SIZE, IMAGE_SIZE),
}
_MARGIN = 6.0  # pixels between the best and the second: no answer hangs on a jitter


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its one-word answer and its kind (a key of `KINDS`)."""

    kind: str
    text: str
    answer: str


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _clear_first(digits: Digits, key: Side) -> Digit | None:
    """Return the digit with the smallest key if it wins by the margin."""
    first, second = sorted(digits, key=key)[:2]
    return first if key(second) - key(first) >= _MARGIN else None


def _unique(digits: Digits, key: Callable[[Digit], object]) -> list[Digit]:
    keys = [key(digit) for digit in digits]
    return [digit for digit in digits if keys.count(key(digit)) == 1]


def _side(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    name = _pick(rng, list(SIDES))
    digit = _clear_first(digits, SIDES[name])
    return (f"which digit is {name}?", NUMBERS[digit.value]) if digit else None


def _side_colour(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    name = _pick(rng, list(SIDES))
    digit = _clear_first(digits, SIDES[name])
    return (f"what colour is the {name} digit?", digit.colour) if digit else None


def _corner(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    name = _pick(rng, list(CORNERS))
    x, y = CORNERS[name]
    digit = _clear_first(digits, lambda digit: float(np.hypot(digit.x - x, digit.y - y)))
    if digit is None:
        return None
    return f"which digit is nearest the {name} corner?", NUMBERS[digit.value]


def _colour_of(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    options = _unique(digits, lambda digit: digit.value)
    if not options:
        return None
    digit = _pick(rng, options)
    return f"what colour is the {NUMBERS[digit.value]}?", digit.colour


def _digit_of(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    options = _unique(digits, lambda digit: digit.colour)
    if not options:
        return None
    digit = _pick(rng, options)
    return f"which digit is {digit.colour}?", NUMBERS[digit.value]


def _count(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    del rng  # there is only one such question about a scene
    return "how many digits are there?", NUMBERS[len(digits)]


def _count_colour(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    counts = {name: sum(digit.colour == name for digit in digits) for name in COLOUR_NAMES}
    wanted = _pick(rng, sorted(set(counts.values())))  # the count first: zero is not favoured
    name = _pick(rng, [name for name, count in counts.items() if count == wanted])
    return f"how many {name} digits are there?", NUMBERS[wanted]


def _exists(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    present = {digit.value for digit in digits}
    answer = bool(rng.integers(2))
    value = _pick(rng, [value for value in range(10) if (value in present) == answer])
    return f"is there a {NUMBERS[value]}?", "yes" if answer else "no"


def _exists_pair(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    present = {(digit.colour, digit.value) for digit in digits}
    answer = bool(rng.integers(2))
    # A "no" pairs a colour and a digit that are both there, only not on the same object.
    options = [
        (digit.colour, other.value)
        for digit in digits
        for other in digits
        if ((digit.colour, other.value) in present) == answer
    ]
    if not options:
        return None
    colour, value = _pick(rng, options)
    return f"is there a {colour} {NUMBERS[value]}?", "yes" if answer else "no"


def _relation(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    options = _unique(digits, lambda digit: digit.value)
    if len(options) < 2:
        return None
    first, second = rng.permutation(len(options))[:2]
    one, two = options[int(first)], options[int(second)]
    word, gap = _pick(rng, [("left of", two.x - one.x), ("above", two.y - one.y)])
    if abs(gap) < _MARGIN:
        return None
    text = f"is the {NUMBERS[one.value]} {word} the {NUMBERS[two.value]}?"
    return text, "yes" if gap > 0 else "no"


def _sum(rng: np.random.Generator, digits: Digits) -> tuple[str, str] | None:
    colours = [digit.colour for digit in digits]
    options = [name for name in COLOUR_NAMES if colours.count(name) == 2]
    if not options:
        return None
    name = _pick(rng, options)
    total = sum(digit.value for digit in digits if digit.colour == name)
    return f"what is the sum of the {name} digits?", NUMBERS[total]


KINDS: dict[str, Callable[[np.random.Generator, Digits], tuple[str, str] | None]] = {
    "side": _side,
    "side_colour": _side_colour,
    "corner": _corner,
    "colour_of": _colour_of,
    "digit_of": _digit_of,
    "count": _count,
    "count_colour": _count_colour,
    "exists": _exists,
    "exists_pair": _exists_pair,
    "relation": _relation,
    "sum": _sum,
}


def ask(rng: np.random.Generator, digits: Digits, count: int) -> list[Question]:
    """Ask `count` different questions about a scene, spread over as many kinds as it allows."""
    asked: list[Question] = []
    while True:
        for kind in rng.permutation(list(KINDS)).tolist():
            pair = KINDS[kind](rng, digits)
            if pair and all(pair[0] != question.text for question in asked):
                asked.append(Question(kind=kind, text=pair[0], answer=pair[1]))
            if len(asked) == count:
                return asked
