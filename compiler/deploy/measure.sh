#!/bin/sh
# Build the engines of this folder with NVIDIA's trtexec and time them, on the machine that will run them. No Python.
# What to do stands in steps.tsv, one step per line. Whatever happens, one JSON file says what was found.
set -eu

rounds=5
seconds=3
result=result.json
usage="usage: sh measure.sh [-r ROUNDS (5)] [-s SECONDS per measurement (3)] [-o RESULT (result.json)]
TRTEXEC=/path/to/trtexec says where the program is, if it isn't on PATH."
while getopts r:s:o:h option; do
  case $option in
    r) rounds=$OPTARG ;;
    s) seconds=$OPTARG ;;
    o) result=$OPTARG ;;
    h) echo "$usage"; exit 0 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
done
case $rounds$seconds in
  *[!0-9]*) echo "measure.sh: -r and -s take whole numbers" >&2; exit 2 ;;
esac
if [ "$rounds" -lt 2 ]; then
  echo "measure.sh: -r $rounds: a spread needs 2 rounds or more" >&2
  exit 2
fi
case $result in
  /*) ;;
  *) result=$PWD/$result ;;
esac
trtexec=${TRTEXEC:-}
case $trtexec in
  /* | "") ;;
  */*) trtexec=$PWD/$trtexec ;;
  *) trtexec=$(command -v "$trtexec" || true) ;;
esac
if [ -n "${TRTEXEC:-}" ] && [ ! -x "$trtexec" ]; then
  echo "measure.sh: TRTEXEC=$TRTEXEC isn't a program" >&2
  exit 2
fi
cd "$(dirname "$0")"
tab=$(printf '\t')
mkdir -p engines logs
runs=logs/runs.json
: > "$runs"
status=complete problem='' release='' device='' before=null

# dash's echo would read backslashes.
warn() {
  printf 'measure.sh: %s\n' "$1" >&2
}

# JSON of a text on one line.
text() {
  printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# Power mode, clocks and temperatures; times of a board mean nothing without them.
power_state() {
  sh ./power.sh -j 2> /dev/null || echo null
}

write_result() {
  after=null
  [ "$before" = null ] || after=$(power_state)
  {
    printf '{"format": 1, "status": "%s", "problem": ' "$status"
    if [ -n "$problem" ]; then text "$problem"; else printf null; fi
    printf ', "trtexec": '; text "$trtexec"
    printf ', "version": '; text "$release"
    printf ', "device": '; text "$device"
    printf ',\n"power": {"before": %s, "after": %s}' "$before" "$after"
    printf ',\n"rounds": %s, "seconds": %s,\n"plan": ' "$rounds" "$seconds"
    cat plan.json
    printf ',\n"runs": [\n'
    sed '$!s/$/,/' "$runs"
    printf ']}\n'
  } > "$result.part"
  mv "$result.part" "$result"
}

stop() {
  status=$1 problem=$2
  warn "$problem"
  write_result
  exit 1
}
trap 'stop interrupted "interrupted"' INT TERM

# Why a run of trtexec failed: its first error, or its last line.
reason() {
  line=$(grep -m 1 '\[E\]' "$1" | sed 's/^.*\[E\] *//' || true)
  [ -n "$line" ] || line=$(tail -n 1 "$1")
  printf '%s' "${line:-no message}" | tr -s '\t ' ' ' | cut -c 1-300
}

missed() {
  status=partial
  warn "$1"
}

# Every field of a step behind the first few, split at tabs only, with trtexec in front.
run() {
  log=$1 line=$2
  saved=$IFS
  IFS=$tab
  set -f
  # shellcheck disable=SC2086  # the line is split on purpose
  set -- $line
  set +f
  IFS=$saved
  shift 4
  "$trtexec" "$@" > "$log" 2>&1
}

[ -f SHA256SUMS ] || stop refused "SHA256SUMS is missing: copy the whole folder again"
if ! sha256sum -c SHA256SUMS > logs/sums.log 2>&1; then
  bad=$(grep -m 1 FAILED logs/sums.log | cut -d : -f 1 || true)
  stop refused "the checksum of '${bad:-?}' differs from what was exported: copy the folder again"
fi
IFS=$tab read -r _ program least below decompose < steps.tsv

for candidate in "$(command -v "$program" || true)" "/usr/src/tensorrt/bin/$program"; do
  if [ -z "$trtexec" ] && [ -n "$candidate" ] && [ -x "$candidate" ]; then trtexec=$candidate; fi
done
[ -n "$trtexec" ] || stop refused "$program was not found on PATH nor in /usr/src/tensorrt/bin: install TensorRT's \
tools (JetPack: apt install tensorrt), or set TRTEXEC"
# The banner of 10.16.2 is "[TensorRT v101602]". --version may fail for want of a model, --help doesn't.
number=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT[^]]* v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)
[ -n "$number" ] || stop refused "'$trtexec --help' doesn't say which TensorRT it belongs to"
if [ "$number" -lt 10000 ]; then # 8.6.1 is "v8601"
  release=$((number / 1000)).$((number / 100 % 10)).$((number % 100))
else
  release=$((number / 10000)).$((number / 100 % 100)).$((number % 100))
fi
if [ "$number" -lt "$least" ] || [ "$number" -ge "$below" ]; then
  stop refused "this folder is for TensorRT $((least / 10000)).$((least / 100 % 100)) up to (not including) \
$((below / 10000)).$((below / 100 % 100)), '$trtexec' is $release: export for that version, see 'lmmprune targets'"
fi
echo "TensorRT $release: $trtexec"
before=$(power_state)
mode=$(printf '%s' "$before" | sed -n 's/^{"mode": "\([^"]*\)".*/\1/p')
case $mode in
  '' | MAXN*) ;;
  *) warn "the power mode is $mode, and kernels and times are of that mode: for full power: sudo sh power.sh" ;;
esac

grep "^build$tab" steps.tsv > logs/build.tsv
while IFS= read -r step; do
  variant=$(printf '%s' "$step" | cut -f 2) component=$(printf '%s' "$step" | cut -f 3)
  engine=$(printf '%s' "$step" | cut -f 4)
  log=logs/build-$variant-$component.log
  mkdir -p "$(dirname "$engine")"
  rm -f "$engine"
  echo "build $variant $component"
  begin=$(date +%s)
  ok=true fused=true
  run "$log" "$step" < /dev/null || ok=false
  if [ $ok = false ] && [ -n "$decompose" ] && grep -q -i -e decomposable -e 'dedicated kernel' "$log"; then
    echo "  attention has no fused kernel here: building it from smaller ones"
    ok=true fused=false
    run "$log" "$step$tab$decompose" < /dev/null || ok=false
  fi
  [ -s "$engine" ] || ok=false
  [ -n "$device" ] || device=$(sed -n 's/.*Selected Device: *//p' "$log" | head -n 1)
  if [ $ok = true ]; then error=null bytes=$(wc -c < "$engine"); else
    rm -f "$engine"
    why=$(reason "$log")
    error=$(text "$why") bytes=0
    missed "$variant: building $component failed: $why (see $log)"
  fi
  printf '{"kind": "build", "variant": "%s", "component": "%s", "ok": %s, "fused_attention": %s, "seconds": %s, "bytes": %s, "error": %s}\n' \
    "$variant" "$component" $ok $fused $(($(date +%s) - begin)) "$((bytes))" "$error" >> "$runs"
done < logs/build.tsv

grep "^time$tab" steps.tsv > logs/time.tsv
round=1
# Every round times every variant, so that a board that grows warm slows all of them alike.
while [ "$round" -le "$rounds" ]; do
  while IFS= read -r step; do
    variant=$(printf '%s' "$step" | cut -f 2) stage=$(printf '%s' "$step" | cut -f 3)
    engine=$(printf '%s' "$step" | cut -f 4)
    [ -f "$engine" ] || continue
    log=logs/time-$variant-$stage-$round.log
    times=logs/time-$variant-$stage-$round.json
    ok=true
    run "$log" "$step$tab--warmUp=500$tab--duration=$seconds$tab--exportTimes=$times" < /dev/null || ok=false
    median=$(sed -n 's/.*GPU Compute Time:.*median = \([0-9.][0-9.e+-]*\) ms.*/\1/p' "$log" | head -n 1)
    error=null
    if [ $ok = false ] || [ -z "$median" ]; then
      ok=false
      why=$(reason "$log")
      error=$(text "$why")
      missed "$variant: timing $stage failed: $why (see $log)"
    else
      echo "round $round $variant $stage $median ms"
    fi
    printf '{"kind": "time", "variant": "%s", "stage": "%s", "round": %s, "ok": %s, "gpu_ms": %s, "error": %s}\n' \
      "$variant" "$stage" "$round" $ok "${median:-null}" "$error" >> "$runs"
  done < logs/time.tsv
  round=$((round + 1))
done
[ $status = complete ] || problem="some steps failed, see runs"
write_result
echo "$status: $result"
[ $status = complete ]
