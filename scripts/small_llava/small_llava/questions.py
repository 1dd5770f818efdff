"""Questions about a scene that need finding and reading its objects, with short answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.glyphs import WORDS
from small_llava.scenes import IMAGE_SIZE, KINDS, MAX_OBJECTS, SHAPES, Thing

T = TypeVar("T")
Things = Sequence[Thing]
Pair = tuple[str, str]

CELLS = 7
COLUMNS = "abcdefg"
"""Places are named as on a chess board: column a..g from the left, row 1..7 from the top."""

SIDES: dict[str, Callable[[Thing], float]] = {
    "leftmost": lambda thing: thing.x,
    "rightmost": lambda thing: -thing.x,
    "topmost": lambda thing: thing.y,
    "bottommost": lambda thing: -thing.y,
}
_MARGIN = 8.0  # pixels between two objects: no answer hangs on a jitter
_EDGE = 2.0  # pixels from the middle of an object to the edge of its cell


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answer (one word or number) and its kind (a key of `ASK`, or `long`)."""

    kind: str
    text: str
    answer: str


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _unique(things: Things, key: Callable[[Thing], object]) -> list[Thing]:
    keys = [key(thing) for thing in things]
    return [thing for thing in things if keys.count(key(thing)) == 1]


def _name(thing: Thing) -> str:
    """Name an object by what it says or is."""
    return thing.content if thing.kind == "shape" else f"{thing.kind} {thing.content}"


def _references(things: Things) -> list[tuple[str, Thing]]:
    """Return all names that mean one object alone: `red number`, `word lamp`, `circle`."""
    by_colour = _unique(things, lambda thing: (thing.kind, thing.colour))
    named = [(f"{thing.colour} {thing.kind}", thing) for thing in by_colour]
    return named + [(_name(thing), thing) for thing in _unique(things, _name)]


def cell(thing: Thing) -> str | None:
    """Return the cell of an object's middle, None if it lies too near an edge."""
    side = IMAGE_SIZE / CELLS
    if any(not _EDGE <= place % side <= side - _EDGE for place in (thing.x, thing.y)):
        return None
    return f"{COLUMNS[int(thing.x // side)]}{int(thing.y // side) + 1}"


def _read(kind: str) -> Callable[[np.random.Generator, Things], Pair | None]:
    def ask_content(rng: np.random.Generator, things: Things) -> Pair | None:
        options = _unique([thing for thing in things if thing.kind == kind], lambda thing: thing.colour)
        if not options:
            return None
        thing = _pick(rng, options)
        text = {
            "number": f"which number is written in {thing.colour}?",
            "word": f"what does the {thing.colour} word say?",
            "digit": f"what is the {thing.colour} digit?",
            "shape": f"which shape is {thing.colour}?",
        }[kind]
        return text, thing.content

    return ask_content


def _colour(rng: np.random.Generator, things: Things) -> Pair | None:
    options = _unique(things, _name)
    if not options:
        return None
    thing = _pick(rng, options)
    return f"what colour is the {_name(thing)}?", thing.colour


def _where(rng: np.random.Generator, things: Things) -> Pair | None:
    options = [(name, place) for name, thing in _references(things) if (place := cell(thing))]
    if not options:
        return None
    name, place = _pick(rng, options)
    return f"where is the {name}?", place


def _count(rng: np.random.Generator, things: Things) -> Pair | None:
    counts = {kind: sum(thing.kind == kind for thing in things) for kind in KINDS} | {"thing": len(things)}
    wanted = _pick(rng, sorted(set(counts.values())))  # the count first: zero is not favoured
    kind = _pick(rng, [kind for kind, count in counts.items() if count == wanted])
    return f"how many {kind}s are there?", str(wanted)


def _count_colour(rng: np.random.Generator, things: Things) -> Pair | None:
    counts = {name: sum(thing.colour == name for thing in things) for name in COLOUR_NAMES}
    wanted = _pick(rng, sorted(set(counts.values())))
    name = _pick(rng, [name for name, count in counts.items() if count == wanted])
    return f"how many {name} things are there?", str(wanted)


def _exists(rng: np.random.Generator, things: Things) -> Pair | None:
    """Ask for a word, a shape or a digit; a "no" asks for a kind of object that is there."""
    values = {"word": WORDS, "shape": SHAPES, "digit": tuple("0123456789")}
    kinds = [kind for kind in values if any(thing.kind == kind for thing in things)]
    if not kinds:
        return None
    kind, answer = _pick(rng, kinds), bool(rng.integers(2))
    present = {thing.content for thing in things if thing.kind == kind}
    options = [value for value in values[kind] if (value in present) == answer]
    if not options:
        return None
    value = _pick(rng, options)
    name = {"word": f"the word {value}", "shape": f"a {value}", "digit": f"a digit {value}"}[kind]
    return f"is there {name}?", "yes" if answer else "no"


def _exists_pair(rng: np.random.Generator, things: Things) -> Pair | None:
    """Ask for a colour and a kind or shape; a "no" pairs what is there, only not on one object."""
    names = [{thing.kind, thing.content if thing.kind == "shape" else thing.kind} for thing in things]
    present = {(thing.colour, name) for thing, own in zip(things, names, strict=True) for name in own}
    answer = bool(rng.integers(2))
    everything = sorted(set().union(*names))
    colours = sorted({thing.colour for thing in things})
    options = [(colour, name) for colour in colours for name in everything if ((colour, name) in present) == answer]
    if not options:
        return None
    colour, name = _pick(rng, options)
    return f"is there a {colour} {name}?", "yes" if answer else "no"


def _relation(rng: np.random.Generator, things: Things) -> Pair | None:
    options = _references(things)
    if len(options) < 2:
        return None
    first, second = rng.permutation(len(options))[:2]
    (one_name, one), (two_name, two) = options[int(first)], options[int(second)]
    words = [
        ("left of", two.x - one.x),
        ("right of", one.x - two.x),
        ("above", two.y - one.y),
        ("below", one.y - two.y),
    ]
    word, gap = _pick(rng, words)
    if one is two or abs(gap) < _MARGIN:
        return None
    return f"is the {one_name} {word} the {two_name}?", "yes" if gap > 0 else "no"


def _side(rng: np.random.Generator, things: Things) -> Pair | None:
    kind, name = _pick(rng, KINDS), _pick(rng, list(SIDES))
    mine = sorted((thing for thing in things if thing.kind == kind), key=SIDES[name])
    if len(mine) < 2 or SIDES[name](mine[1]) - SIDES[name](mine[0]) < _MARGIN:
        return None
    return f"which {kind} is {name}?", mine[0].content


ASK: dict[str, Callable[[np.random.Generator, Things], Pair | None]] = {
    "number": _read("number"),
    "word": _read("word"),
    "digit": _read("digit"),
    "shape": _read("shape"),
    "colour": _colour,
    "where": _where,
    "count": _count,
    "count_colour": _count_colour,
    "exists": _exists,
    "exists_pair": _exists_pair,
    "relation": _relation,
    "side": _side,
}

_OFTEN = ("number", "number", "word", "word", "where", "side")
"""Kinds that come up more often than the others: reading and grounding is what pruning loses."""

_LONG = ("number", "word", "colour", "where", "exists_pair")  # kinds that are also asked with a long preamble


def _preamble(rng: np.random.Generator) -> str:
    """Write three sentences that don't matter, though they name what may be there."""
    colour, other = _pick(rng, COLOUR_NAMES), _pick(rng, COLOUR_NAMES)
    sentences = (
        f"this picture was taken on a long walk through the {colour} town.",
        f"my friend likes every {colour} {_pick(rng, SHAPES)} and the word {_pick(rng, WORDS)}.",
        f"yesterday there were {rng.integers(2, MAX_OBJECTS + 1)} {_pick(rng, KINDS)}s on the {other} wall.",
        f"do not think of the {other} {_pick(rng, KINDS)}.",
        "please look closely at all that is there and answer in one word.",
        f"the {_pick(rng, WORDS)} and the {_pick(rng, WORDS)} are far away from here.",
    )
    return " ".join(sentences[int(index)] for index in rng.permutation(len(sentences))[:3])


def ask(rng: np.random.Generator, things: Things, count: int, *, long: float = 0.1) -> list[Question]:
    """Ask `count` different questions about a scene, spread over as many kinds as it allows.

    Args:
        rng: source of all choices.
        things: the objects of the scene.
        count: number of questions.
        long: chance of a question of `_LONG` to come behind a preamble, as kind `long`.
    """
    asked: list[Question] = []
    known: set[str] = set()
    for _ in range(6):
        for kind in rng.permutation([*ASK, *_OFTEN]).tolist():
            pair = ASK[kind](rng, things)
            if pair is None or pair[0] in known:
                continue
            known.add(pair[0])
            if kind in _LONG and rng.random() < long * 2:
                asked.append(Question(kind="long", text=f"{_preamble(rng)} {pair[0]}", answer=pair[1]))
            else:
                asked.append(Question(kind=kind, text=pair[0], answer=pair[1]))
            if len(asked) == count:
                return asked
    return asked
