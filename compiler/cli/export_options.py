"""Which options of ``lmmprune export`` mean nothing without another one."""

from __future__ import annotations

from collections.abc import Mapping

from lmmprune.compiler.cli.given import refuse_ignored

_INT8 = ("int8", "int8_weights_only", "int8_dynamic")


def check_export_options(ratio: str | None, buckets: str | None, request: Mapping[str, object]) -> None:
    """Refuse options that say more about something that isn't done.

    Args:
        ratio: As ``--ratio`` takes it.
        buckets: As ``--buckets`` takes it.
        request: The other options by their parameter names.

    Raises:
        InputError: One was given.
    """
    prunes = ratio is not None or request["keep"] is not None or bool(buckets)
    one = [f"--{name.replace('_', '-')}" for name in _INT8 if request[name]]
    static = one == ["--int8"]
    how = ("smooth", "calibrator", "int8_budget")
    refuse_ignored(
        prunes,
        "says how tokens are removed: add --ratio R, --keep K or --buckets",
        *("method", "method_file", "pairs", "positions"),
    )
    refuse_ignored(ratio == "auto", "is for --ratio auto: leave it out", "percentile")
    refuse_ignored(bool(one), "says how to quantize: add --int8", "int8_policy", "keep_float", *how)
    refuse_ignored(
        static or request["int8_policy"] == "auto" or len(one) > 1,
        f"is about ranges that are measured before, and {one[0] if one else '--int8'} has none: leave it out",
        *how,
    )
    refuse_ignored(request["int8_policy"] == "auto", "is what --int8-policy auto allows: add that", "int8_budget")
    refuse_ignored(
        static or len(one) > 1 or ratio == "auto" or bool(buckets),
        "is for what looks at pictures first, --int8, --ratio auto and --buckets: add one of them, or leave it out",
        *("calib", "calib_samples"),
    )
