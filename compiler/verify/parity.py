"""Compare what a bundle's graphs said with the PyTorch reference, picture by picture, and judge it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.verify.replay import DecoderOutputs, VisionOutputs, kept_outputs

if TYPE_CHECKING:
    from lmmprune.compiler.verify.reference import Cut, Said

Array = np.ndarray[Any, Any]

# Float32 must agree to 1e-4 of the reference's largest value, and in every kept place. Half precision and integers
# round on purpose: there the direction must agree, and the overlap of the kept sets is reported. Weights of four bits
# turn it by more, without a mistake: what that costs is for ``eval`` and ``compare`` to say [ours; lowest seen, on
# tiny-llava, plain rounding with a scale for 128 of 128 inputs: 0.976].
EXACT = 1e-4
COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.999, "int8": 0.95, "int4": 0.9}
INTEGERS = {"int8", "int4"}
# Behind a word that is certain, training says nothing about the logits of all others, and rounding moves them together:
# a row whose largest difference is so small a part of the reference's largest logit says the same in integers,
# whatever its direction [ours; seen on small-llava].
MOVED = 0.15
# A step here and there comes out far in INT8, where activations unlike all that calibration saw are cut off; a wrong
# graph is wrong in nearly all steps. So large a share of the rows may be beyond the limits [ours].
STRAY = 0.1
# Scores of the reference that differ by less, relative to their size, may be ordered either way in float32.
NEAR_TIE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the graph and the reference are apart on one picture.

    Attributes:
        overlaps: Per site, intersection over union of the kept sets.
        same: Whether the kept places are equal, and in the same order, at every site.
        rows: Of each row of values, the largest difference, of the reference's largest, and the cosine; none where the
            two kept nothing in common.
        margin: Smallest relative gap of scores that decided anything in the reference.
    """

    overlaps: Mapping[str, float]
    same: bool
    rows: Sequence[tuple[float, float]]
    margin: float

    @property
    def relative(self) -> float:
        """Largest difference of all rows; NaN where one is."""
        return float(np.max([relative for relative, _ in self.rows], initial=0))

    @property
    def cosine(self) -> float:
        """Lowest cosine of all rows; NaN where one is."""
        return float(np.min([cosine for _, cosine in self.rows], initial=1))

    @property
    def near_tie(self) -> bool:
        """Whether the two differ, and a gap within float32's rounding explains it."""
        return self.margin < NEAR_TIE and not (self.same and self.relative <= EXACT)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether something held (None: nothing was left to judge by), and the figures."""

    passed: bool | None
    found: str


class Reference:
    """The PyTorch model with a bundle's method: the same picture and the same words."""

    def __init__(self, model: Any, options: Mapping[str, Any], special_ids: Iterable[int]) -> None:
        """Take the loaded model, the options of the method's rule, and the ids that ``prune_text`` spares."""
        self._model = model
        self._options = dict(options)
        self._special_ids = frozenset(special_ids)

    def encode_image(self, vision: VisionOutputs) -> Difference:
        """See the same pixels and compare kept places and image features.

        Raises:
            CutRefused: The method doesn't cut at the manifest's sites.
        """
        import torch

        from lmmprune.compiler.verify.reference import see

        if vision.manifest.tiles is not None:
            # A grid of several that the bundle serves.
            tile = vision.pixels.shape[2:]
            grid = [count * side for count, side in zip(vision.manifest.tiles, tile, strict=True)]
            self._model.config.image_grid_pinpoints = [grid]
        outputs = kept_outputs(vision.manifest)
        method, cuts = _side(vision.manifest, in_decoder=False)
        seen = see(self._model, method, self._options, cuts, torch.from_numpy(vision.pixels))
        expected = {site: kept[0] for site, kept in seen.kept.items() if site in outputs}
        features, wanted = vision.features[0].astype(np.float32), seen.features[0]
        if vision.places is not None and expected:
            *_, last = expected.values()
            mine, theirs = _shared(vision.places, last)
            features, wanted = features[mine], wanted[theirs]
        kept = {site: vision.kept[outputs[site]][0] for site in expected}
        return _difference(kept, expected, features.reshape(1, -1), wanted.reshape(1, -1), seen.margin)

    def dynamic_count(self, vision: VisionOutputs) -> tuple[int, float]:
        """Return how many tokens the method itself would keep of a picture, and the gap that decided it."""
        import torch

        from lmmprune.compiler.verify.reference import Chooser, knee

        chooser = Chooser()
        return int(knee(self._model, torch.from_numpy(vision.pixels), chooser)[0]), chooser.margin

    def decode(self, vision: VisionOutputs | Sequence[VisionOutputs], decoder: DecoderOutputs) -> Difference:
        """Say the same words of the graph's own features, and compare kept places and logits.

        A near-tie that rounding flipped in the vision part was counted there.

        Args:
            vision: The picture, or several.
            decoder: What the graph says of them.

        Raises:
            CutRefused: It does not cut at the manifest's sites, or may not remove so many tokens of the question.
        """
        from lmmprune.compiler.verify.reference import Picture, say, say_of_several

        pictures = [vision] if isinstance(vision, VisionOutputs) else vision
        manifest = pictures[0].manifest
        # Of pictures of several sizes one may keep all, and have no cut.
        most = max((one.manifest for one in pictures), key=lambda own: len(own.schedule))
        method, cuts = _side(most, in_decoder=True)
        rows, video = manifest.position_rows > 1, manifest.video
        parts = [(one.manifest, part) for one in pictures for part in _each(one)]
        seen = [
            Picture(*part, own.tokens_of(place), own.grid if rows else None, own.image_tokens)
            for place, (own, part) in enumerate(parts)
        ]
        settings: dict[str, Any] = {
            "positions": {"vision": manifest.positions, "llm": manifest.llm_positions},
            "patches": manifest.picture_tokens,
            "grid": manifest.grid if rows else None,
            "steps": len(decoder.tokens) - 1,
            "forced": decoder.tokens,
        }
        if video is not None and video.together and (clock := pictures[0].clock) is not None:
            settings["interval"] = 1.0 if video.pace is None else video.pace * clock.interval
        every: Sequence[Said]
        if len(seen) > 1:
            every = say_of_several(
                self._model, method, self._options, cuts, seen, decoder.texts, prefix=manifest.prefix, **settings
            )
        else:
            every = [
                say(
                    self._model,
                    method,
                    self._options,
                    cuts,
                    seen[0].features,
                    seen[0].kept,
                    decoder.prefix,
                    decoder.tail,
                    special_ids=self._special_ids,
                    **settings,
                )
            ]
        outputs = kept_outputs(manifest)
        expected, kept = {}, {}
        # Of pictures that are seen together nothing is chosen in the decoder.
        for number, (said, found) in enumerate(zip(every, decoder.kept, strict=not manifest.joint), 1):
            for site in (site for site in said.kept if site in outputs):
                name = site if len(pictures) == 1 else f"{site} of picture {number}"
                expected[name], kept[name] = said.kept[site], found[outputs[site]][0]
        judged = slice(
            answer_length(decoder.tokens, manifest.prompt.eos_token_ids) if manifest.precision.quantized else None
        )
        margin = min(said.margin for said in every)
        return _difference(kept, expected, decoder.logits[judged], every[0].logits[judged], margin)


def _each(vision: VisionOutputs) -> list[tuple[Any, Array | None]]:
    """Return features ``[K,C]`` and places ``[K]`` of each picture, where several are seen together its own."""
    import torch

    read, places = vision.read
    features = torch.from_numpy(read[0].astype(np.float32))
    if places is None or not vision.manifest.joint:
        return [(features, places)]
    before, video = vision.manifest.picture_tokens, vision.manifest.video
    own = np.where(places < 0, places, places % before)
    if video is not None and video.newline:
        own = np.where(places == before * video.views, before, own)
    ends = np.cumsum(vision.counts)
    return list(zip(torch.tensor_split(features, ends[:-1].tolist()), np.split(own, ends[:-1]), strict=True))


def _side(manifest: Manifest, *, in_decoder: bool) -> tuple[str, list[Cut]]:
    """Return the method and its cuts on one side."""
    from lmmprune.compiler.verify.reference import Cut

    cuts = [Cut(stage.site, stage.tokens_out) for stage in manifest.schedule if stage.in_decoder == in_decoder]
    # Without cuts no rule is ever used, and any name will do.
    return manifest.method or "uniform", cuts


def _difference(
    kept: Mapping[str, Array], expected: Mapping[str, Array], found: Array, wanted: Array, margin: float
) -> Difference:
    """Compare kept places ``[K]`` per site and values ``[rows, any]``."""
    overlaps = {}
    for site, places in expected.items():
        mine, theirs = set(kept[site].tolist()), set(places.tolist())
        overlaps[site] = len(mine & theirs) / len(mine | theirs)
    return Difference(
        overlaps=overlaps,
        same=all(np.array_equal(kept[site], expected[site]) for site in expected),
        rows=[relative_and_cosine(ours, theirs) for ours, theirs in zip(found, wanted, strict=True) if ours.size],
        margin=margin,
    )


def relative_and_cosine(found: Array, wanted: Array) -> tuple[float, float]:
    """Return the largest difference of a value, of the largest one wanted, and the cosine of two rows ``[any]``."""
    with np.errstate(invalid="ignore", divide="ignore"):  # what has no direction, or no size, is NaN and holds nowhere
        cosine = found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted))
        relative = np.abs(found - wanted).max() / np.abs(wanted).max()
    return float(relative), float(cosine)


def answer_length(tokens: Sequence[int], ends: Sequence[int]) -> int:
    """Return how many tokens an answer has with the one that ends it: what comes behind is noise in integers."""
    return next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))


def _shared(found: Array, expected: Array) -> tuple[list[int], list[int]]:
    """Return the rows of both sides with the same places, in the order of the first; tokens without one go by order."""

    def rows(places: Array) -> dict[tuple[int, int], int]:
        seen: dict[int, int] = {}
        result = {}
        for row, place in enumerate(places.tolist()):
            seen[place] = seen.get(place, 0) + 1
            result[place, seen[place]] = row
        return result

    mine, theirs = rows(found), rows(expected)
    both = [key for key in mine if key in theirs]
    return [mine[key] for key in both], [theirs[key] for key in both]


def judge_kept(differences: Sequence[Difference], precision: str) -> Verdict:
    """Judge kept places: in float32 they must be equal but for near-ties; else their overlap is reported."""
    overlaps = [overlap for difference in differences for overlap in difference.overlaps.values()]
    clear, note = _clear(differences, precision)
    if precision != "float32":
        passed: bool | None = True
    else:
        passed = all(difference.same for difference in clear) if clear else None
        if passed is False and min(overlaps) == 1:
            note += ", in another order"
    figures = f"IoU {np.mean(overlaps):.4f} (lowest {min(overlaps):.4f}) over {len(differences)} pictures"
    sites = max(len(difference.overlaps) for difference in differences)
    return Verdict(passed=passed, found=figures + (f" and {sites} sites" if sites > 1 else "") + note)


def judge_values(differences: Sequence[Difference], precision: str) -> Verdict:
    """Judge features or logits row by row: their largest difference in float32, their cosine in any precision.

    In integers a row holds, too, whose largest difference is ``MOVED`` at most, and a share of ``STRAY`` needn't hold.
    """
    clear, note = _clear(differences, precision)
    judged = clear or differences
    rows = [row for difference in judged for row in difference.rows]
    if not rows:
        return Verdict(passed=None, found=f"no kept place in common{note}")
    # NumPy's max and min keep a NaN, the built-in ones may pass over it.
    worst, cosine = float(np.max([row[0] for row in rows])), float(np.min([row[1] for row in rows]))
    beyond = [row for row in rows if not row[1] >= COSINE[precision]]
    if precision in INTEGERS:
        beyond = [row for row in beyond if not row[0] <= MOVED]
        note += f", {len(beyond)} of {len(rows)} steps beyond" if beyond else ""
    stray = STRAY * len(rows) if precision in INTEGERS else 0
    good = bool(np.isfinite([worst, cosine]).all()) and len(beyond) <= stray
    good = good and (worst <= EXACT or precision != "float32")
    return Verdict(
        passed=good if clear else None,
        found=f"largest relative difference {worst:.2e}, lowest cosine {cosine:.6f}{note}",
    )


def judge_dynamic_counts(counts: Sequence[tuple[int, int, float]], precision: str) -> Verdict:
    """Judge dynamic counts (found, expected, gap): in float32 they must be equal but for near-ties."""
    clear = [(found, expected) for found, expected, gap in counts if found == expected or gap >= NEAR_TIE]
    apart = max(abs(found - expected) for found, expected, _ in counts)
    passed: bool | None = True
    if precision == "float32":
        passed = all(found == expected for found, expected in clear) if clear else None
    ties = f", {len(counts) - len(clear)} near-ties left out" if len(clear) < len(counts) else ""
    listed = ", ".join(str(found) for found, _, _ in counts)
    return Verdict(passed=passed, found=f"{listed}; at most {apart} from the reference's{ties}")


def _clear(differences: Sequence[Difference], precision: str) -> tuple[list[Difference], str]:
    """Return the pictures that count, and a note on those that don't: near-ties, in float32."""
    if precision != "float32":
        return list(differences), ""
    clear = [difference for difference in differences if not difference.near_tie]
    ties = [difference.margin for difference in differences if difference.near_tie]
    return clear, f", {len(ties)} near-ties left out (gap {max(ties):.1e})" if ties else ""
