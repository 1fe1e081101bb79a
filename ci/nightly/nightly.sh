#!/usr/bin/env bash
# One night of a lab: run a scenario, put its machine back, keep and publish what came of it.
#
#   ci/nightly/nightly.sh [OPTIONS] SCENARIO [barometer run options]
#   ci/nightly/nightly.sh [OPTIONS] --recover SCENARIO
#
#   --dir DIR       of this scenario on this machine alone (default: nightly/SCENARIO, without .toml)
#   --keep N        keep so many nights (default: 14), and what the next is to be compared with
#   --limit TIME    of the run, as timeout(1) has it (default: 5h); putting back comes on top
#   --recover       only put the machine back: what a CI does at the end whatever happened
#
#   DIR/runs/TIME/   a night's run; compare.txt: its candidate against that of the last whole run
#   DIR/history.csv  a row for each whole run (of a matrix: history-CELL.csv)
#   DIR/published/   of the last night what people and other tools read
#
# Exit codes are those of `barometer run`, but: 1 also where the candidate regressed since the last
# whole run; 3 where the machine is not as it was, whatever the verdict, or the limit has passed.
set -euo pipefail
PATH=$PATH:$(readlink -f "$(dirname "$0")/../..")/.venv/bin

say() { printf 'nightly: %s\n' "$*" >&2; }
wrong() { say "error: $*"; exit 2; }

# Returns what `barometer recover` does. Signals are held off meanwhile: a machine half put back is
# worth less than a late end.
put_back() {
  local status=0
  trap '' INT TERM HUP
  put_back_was_tried=yes
  barometer clean >&2 || say "what a killed run left on this runner is still there"
  barometer recover "$scenario" >&2 || status=$?
  if [ "$status" != 0 ]; then
    say "error: the machine is not as it was; once that is mended: barometer recover $scenario"
  fi
  return "$status"
}

# Also when this script is killed: the lock is inherited, so that --recover waits for it.
begin_run() {
  local dies_too=(setpriv --pdeathsig TERM)
  "${dies_too[@]}" timeout --kill-after=30m "$limit" "${dies_too[@]}" \
    barometer run "$scenario" --out "$run" "$@" &
  child=$!
}

# Its exit code; a signal to this script ends it in order, and is waited for.
end_of_run() {
  local seen status
  while :; do
    seen=$signals status=0
    wait "$child" || status=$?
    [ "$seen" = "$signals" ] && return "$status"
  done
}

# What is not complete, or invalid, has no row.
is_whole() { [ -f "$1/results.csv" ] && [ "$(wc -l <"$1/results.csv")" -gt 1 ]; }

any_is_whole() {
  local folder
  for folder; do
    if is_whole "$folder"; then return; fi
  done
  return 1
}

# The newest whole run before tonight's, or its cell; $1: "" or "/cells/NAME".
last_whole() {
  local at
  for ((at = ${#nights[@]} - 1; at >= 0; at--)); do
    if [ "${nights[at]}" != "$run" ] && is_whole "${nights[at]}$1"; then
      printf '%s\n' "${nights[at]}$1"
      return
    fi
  done
}

# A history of an earlier version calls costs seconds, and has no column for their unit.
renew_history() {
  [[ $(head -n 1 "$1") == time,branch,run,* ]] || return 0
  awk '
    BEGIN { FS = OFS = ","; unit["exact"] = "Ginsn"; unit["tcg"] = "emulated s" }
    NR == 1 { gsub(/_seconds/, "_cost"); gsub(/host_boot_cost/, "host_boot_seconds") }
    {
      accel = $2; sub(/.*\//, "", accel)  # of SCENARIO/ACCEL
      $2 = $2 OFS (NR == 1 ? "unit" : accel in unit ? unit[accel] : "s")
      print
    }' "$1" >"$1.new"
  mv -- "$1.new" "$1"
}

# A history that has other columns is of what the scenario was before, and is put aside.
append_to_history() {
  local results=$1 history=$2
  if [ -f "$history" ]; then renew_history "$history"; fi
  if [ -f "$history" ] && [ "$(head -n 1 "$history")" != "$(head -n 1 "$results")" ]; then
    say "$history has other columns; it is ${history%.csv}-until-$night.csv now"
    mv -- "$history" "${history%.csv}-until-$night.csv"
  fi
  [ -f "$history" ] || head -n 1 "$results" >"$history"
  tail -n +2 "$results" >>"$history"
}

# Returns 1 where the candidate regressed; what is undecided decides nothing here.
compare_with() {
  local before=$1 tonight=$2 status=0
  barometer compare "$before" "$tonight" >"$tonight/compare.txt" || status=$?
  cat "$tonight/compare.txt"
  [ "$status" != 1 ] || say "the candidate regressed since $before"
  [ "$status" != 1 ]
}

publish() {
  local new=$dir/published.new
  rm -rf -- "$new"
  mkdir -- "$new"
  (
    cd "$run"
    find . -maxdepth 3 -type f '(' -name 'report.*' -o -name junit.xml -o -name results.csv \
      -o -name comparison.json -o -name compare.txt ')' -exec cp --parents -t "$new" '{}' +
  )
  find "$dir" -maxdepth 1 -name 'history*.csv' -exec cp -t "$new" '{}' +
  mv -- "$new" "$dir/published"
}

# The newest whole run outlives its number of nights where none after it was whole.
prune() {
  local at kept=0 whole='' cells
  for ((at = ${#nights[@]} - 1; at >= 0; at--)); do
    cells=("${nights[at]}" "${nights[at]}"/cells/*)
    if ((kept < keep)) || { [ -z "$whole" ] && any_is_whole "${cells[@]}"; }; then
      kept=$((kept + 1))
      if any_is_whole "${cells[@]}"; then whole=yes; fi
    else
      rm -rf -- "${nights[at]}"
    fi
  done
}

dir='' keep=14 limit=5h only_recover=
while [ $# -gt 0 ]; do
  case $1 in
    --dir | --keep | --limit)
      [ -n "${2:-}" ] || wrong "$1 needs a value" ;;&
    --dir) dir=$2; shift 2 ;;
    --keep) keep=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    --recover) only_recover=yes; shift ;;
    -*) wrong "$1 is unknown here; options of barometer run come after the scenario" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || wrong "no scenario; see the head of $0"
scenario=$1
shift
[[ $scenario == *.toml && -f $scenario ]] || wrong "$scenario: no scenario file, NAME.toml"
[[ $keep =~ ^[1-9][0-9]*$ ]] || wrong "--keep $keep: not a number of nights"
[[ $limit =~ ^[0-9]+[smhd]?$ ]] || wrong "--limit $limit: not a time as 90m or 5h"
case "$*" in
  *host.address* | *host.ssh_config*) wrong "which machine it is stands in $scenario, which is put back" ;;
  *--out*) wrong "--out: a night's run is in DIR/runs; see --dir" ;;
esac

dir=$(realpath -m -- "${dir:-nightly/$(basename "$scenario" .toml)}")
mkdir -p -- "$dir/runs" || wrong "--dir $dir cannot be made"
exec 9>"$dir/lock"
if [ -n "$only_recover" ]; then
  if ! flock --timeout 1800 9; then
    say "error: a night is still at work in $dir; nothing was changed"
    exit 3
  fi
  put_back || exit 3
  exit 0
fi
if ! flock --nonblock 9; then
  say "error: another night is at work in $dir"
  exit 3
fi

# From here on the machine may be changed, and is put back whatever becomes of this script.
code=3 put_back_was_tried='' signals=0 child=''
trap '[ -n "$put_back_was_tried" ] || put_back || code=3; exit "$code"' EXIT
trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' INT TERM HUP

rm -rf -- "$dir/published"  # what is there in the morning is of this night
night=$(date -u +%Y%m%dT%H%M%SZ)
run=$dir/runs/$night
begin_run "$@"
[ "$signals" = 0 ] || kill -TERM "$child" 2>/dev/null || :
ended=0
end_of_run || ended=$?
case $ended in
  [0-4] | 70 | 130) ;;
  124)
    say "error: the run was not done within $limit"
    ended=3 ;;
  *)
    say "error: the run was killed (exit code $ended)"
    ended=$([ "$signals" = 0 ] && echo 3 || echo 130) ;;
esac
put_back || [ "$ended,$?" = 2,2 ] || ended=3  # a wrong scenario: nothing was begun

[ -d "$run" ] || { code=$ended; exit; }
[ -f "$run/junit.xml" ] || barometer report "$run" || :  # of as many trials as there are
shopt -s nullglob
nights=("$dir"/runs/2*Z)
for folder in "$run" "$run"/cells/*; do
  is_whole "$folder" || continue
  cell=${folder#"$run"}
  append_to_history "$folder/results.csv" "$dir/history${cell:+-${cell#/cells/}}.csv"
  before=$(last_whole "$cell")
  [ -n "$before" ] || continue
  if ! compare_with "$before" "$folder" && [ "$ended" = 0 ]; then ended=1; fi
done
publish
prune
code=$ended
