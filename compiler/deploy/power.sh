#!/bin/sh
# Put a Jetson into its mode of full power, by the mode's name: its number is another one on every board (0 is MAXN on
# an AGX Orin, and 15 W on an Orin Nano). Needs sudo. With -j, change nothing and print the present state as JSON.
set -eu

usage="usage: sudo sh power.sh      set the mode of full power and the clocks, and say what is set
       sh power.sh -j        print mode, clocks (MHz) and temperatures (degrees C) as JSON, changing nothing"
# It lies where not every user's PATH leads.
PATH=$PATH:/usr/sbin
# Other places are for tests.
conf=${NVPMODEL_CONF:-/etc/nvpmodel.conf}
sys=${SYSFS:-/sys}

warn() {
  printf 'power.sh: %s\n' "$1" >&2
}

die() {
  warn "$1"
  exit 1
}

# JSON of a text on one line.
text() {
  printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# "MAXN_SUPER" and "2" of what nvpmodel says; warnings about fans and the like may stand before.
query() {
  mode='' number=''
  command -v nvpmodel > /dev/null || return 0
  said=$(nvpmodel -q 2>&1 < /dev/null || true)
  mode=$(printf '%s\n' "$said" | sed -n 's/^NV Power Mode: *//p' | head -n 1)
  number=$(printf '%s\n' "$said" | grep -x '[0-9][0-9]*' | head -n 1 || true)
}

# A number out of a file of the kernel, divided; nothing where there is none (sensors of a sleeping GPU don't answer).
reading() {
  value=$(cat "$1" 2> /dev/null || true)
  if printf '%s\n' "$value" | grep -q -x -e '-\{0,1\}[0-9]\{1,\}'; then awk "BEGIN { print $value / $2 }"; fi
}

# One clock as JSON: its name, the frequency now, and the highest that is allowed.
clock() {
  now=$(reading "$2" "$4") most=$(reading "$3" "$4")
  [ -n "$now" ] || return 0
  printf '%s' "$comma"; text "$1"; printf ': {"mhz": %s, "max_mhz": %s}' "$now" "${most:-null}"
  comma=', '
}

state() {
  query
  printf '{"mode": '
  if [ -n "$mode" ]; then text "$mode"; else printf null; fi
  printf ', "mode_id": %s, "clocks": {' "${number:-null}"
  comma=''
  for policy in "$sys"/devices/system/cpu/cpufreq/policy*; do
    clock "cpu-${policy##*/policy}" "$policy/scaling_cur_freq" "$policy/scaling_max_freq" 1000
  done
  for device in "$sys"/class/devfreq/*; do
    clock "${device##*/}" "$device/cur_freq" "$device/max_freq" 1000000
  done
  printf '}, "temperatures": {'
  comma=''
  for zone in "$sys"/class/thermal/thermal_zone*; do
    name=$(cat "$zone/type" 2> /dev/null || true)
    degrees=$(reading "$zone/temp" 1000)
    if [ -n "$name" ] && [ -n "$degrees" ]; then
      printf '%s' "$comma"; text "$name"; printf ': %s' "$degrees"
      comma=', '
    fi
  done
  printf '}}\n'
}

# "2 MAXN_SUPER" of the lines "< POWER_MODEL ID=2 NAME=MAXN_SUPER >", one a line.
modes() {
  sed -n 's/^[[:space:]]*<[[:space:]]*POWER_MODEL[[:space:]]\{1,\}ID=\([0-9]\{1,\}\)[[:space:]]\{1,\}NAME=\([^[:space:]>]\{1,\}\).*/\1 \2/p' "$conf"
}

set_full_power() {
  command -v nvpmodel > /dev/null || die "nvpmodel was not found: this isn't a Jetson, nothing was set"
  [ -r "$conf" ] || die "'$conf' can't be read: nothing was set; look for a mode called MAXN with: sudo nvpmodel -p --verbose"
  found=$(modes)
  best=$(printf '%s\n' "$found" | awk '
    $2 == "MAXN_SUPER" { rank = 3 } $2 == "MAXN" { rank = 2 } $2 ~ /^MAXN/ && !rank { rank = 1 }
    rank > top { top = rank; line = $0 } { rank = 0 } END { print line }')
  if [ -z "$best" ]; then
    listed=$(printf '%s\n' "$found" | awk 'NF { printf "%s%s (%s)", comma, $2, $1; comma = ", " }')
    die "no mode called MAXN in '$conf' (there are: ${listed:-none}): choose the highest yourself: sudo nvpmodel -m NUMBER"
  fi
  id=${best%% *} wanted=${best#* }
  query
  if [ "$mode" != "$wanted" ]; then
    # It may ask whether to restart, which is yours to decide.
    out=$(nvpmodel -m "$id" 2>&1 < /dev/null) || warn "nvpmodel -m $id: $(printf '%s\n' "$out" | tail -n 1)"
    query
  fi
  [ "$mode" = "$wanted" ] || die "the mode is ${mode:-unknown}, not $wanted: run this with sudo, or, if it wants a restart: \
sudo nvpmodel -m $id, and this again afterwards"
  if command -v jetson_clocks > /dev/null; then
    jetson_clocks || warn "jetson_clocks failed: clocks move with the load; run this with sudo"
  else
    warn "jetson_clocks was not found: clocks move with the load"
  fi
  echo "power mode $mode ($id)"
  state
}

case ${1:-} in
  '') set_full_power ;;
  -j) state ;;
  -h) echo "$usage" ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
