#!/usr/bin/env bash
# Install what barometer needs on a Debian 12 or 13 machine. Idempotent.
#
#   ci/setup.sh            what barometer needs to run: install what is missing and print it
#   ci/setup.sh --tests    the same, and what the tests need from their first minute
#   ci/setup.sh --late     only the system packages for late tests; may run beside the tests
#   ... --check            change nothing; exit 1 and list what is missing
#
# Silent and quick if nothing is missing. Requires root (or sudo) only to install system packages.
# Everything else is an ordinary user's: the virtual environment .venv beside this folder, and
# barometer's own caches, which it makes when it first needs them.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 3; }

tests=0 late=0 check_only=0
for option; do
  case $option in
    --tests) tests=1 ;;
    --late) late=1 ;;
    --check) check_only=1 ;;
    *) die "$option: there are --tests, --late and --check" ;;
  esac
done

# What each package is for:
#   qemu-system-x86 libvirt-*        the nested host, through libvirt's embedded driver
#   mmdebstrap e2fsprogs uidmap      the host image, built without root if that is allowed
#   kmod xz-utils zstd               a kernel's modules and source
#   git                              sources and series of kernels that are built, bisection
#   openssh-client                   qemu+ssh:// to the host's libvirt
#   libvirt-dev gcc pkgconf python3-venv libpython3-dev
#                                    libvirt-python is published as source only
running=(
  qemu-system-x86 libvirt-daemon-driver-qemu
  mmdebstrap e2fsprogs uidmap kmod xz-utils zstd git openssh-client debian-archive-keyring
  ca-certificates
  libvirt-dev gcc pkgconf python3-venv libpython3-dev
)
#   make                             tests that run the kernel's Makefiles
#   openssh-server                   the ssh lane
#   fdisk mtools                     the EFI system partition of the metal tests' machine
#   procps                           tests that look for what a run left behind
#   gnupg                            a mirror that is signed
#   postgresql                       a history that a team shares; the tests start the server
for_tests=(make openssh-server fdisk mtools procps gnupg postgresql)
#   chromium                         the browser lane: reports as a reader sees them
for_late=(chromium)
# On Debian 12 these come from bookworm-backports: its own QEMU (7.2) neither aligns BAR mappings
# nor knows the machine types used here, and its own libvirt (9.0) is as old.
from_backports=(qemu-system-x86 libvirt-daemon-driver-qemu libvirt-dev)

lock=ci/requirements.lock
packages=("${running[@]}")
if [ "$tests" = 1 ]; then lock=ci/requirements-tests.lock; packages+=("${for_tests[@]}"); fi
if [ "$late" = 1 ]; then packages=("${for_late[@]}"); fi

. /etc/os-release
case "${ID:-}:${VERSION_ID:-}" in
  debian:12) backports=bookworm-backports ;;
  debian:13) backports= ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}; Debian 12 and 13 are supported." \
         "On another distribution install the equivalents of: ${packages[*]}" \
         "(QEMU 10 or later, libvirt 11 or later, Python 3.11 or later), then:" \
         "python3 -m venv .venv && .venv/bin/pip install --require-hashes -r $lock && .venv/bin/pip install --no-deps -e ." ;;
esac
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 runners are supported, this one is $(dpkg --print-architecture)"

there=$(dpkg-query -W -f '${Package} ${db:Status-Abbrev}${Version}\n' "${packages[@]}" 2>/dev/null || :)
missing=()
for p in "${packages[@]}"; do
  want="$p ii "
  case "$backports ${from_backports[*]} " in   # an old QEMU or libvirt must be replaced
    bookworm-*" $p "*) want+=".*bpo12" ;;
  esac
  grep -q "^$want" <<<"$there" || missing+=("$p")
done

# Stamps in .venv record what it was made from, where, and for which Python. An incomplete .venv
# has none.
stamp() { printf '.venv/.made-of-%s' "${1##*/}"; }
content() { printf '%s %s %s\n' "$(sha256sum <"$1")" "$(readlink -f /usr/bin/python3)" "$PWD"; }
is_current() { [ "$(cat "$(stamp "$1")" 2>/dev/null)" = "$(content "$1")" ]; }
remember() { content "$1" >"$(stamp "$1")"; }
venv=current
if [ "$late" = 0 ]; then
  is_current pyproject.toml || venv=without-barometer
  is_current "$lock" || venv=incomplete
  if ! is_current ci/requirements.lock || { [ "$venv" = incomplete ] && [ -e "$(stamp "$lock")" ]; }; then
    venv=none   # anew: a package that is no longer locked must not be visible to a test
  fi
fi

if [ "$check_only" = 1 ]; then
  [ ${#missing[@]} = 0 ] || { say "missing system packages: ${missing[*]}"; exit 1; }
  [ "$venv" = current ] || { say "the virtual environment .venv is missing or out of date"; exit 1; }
  exit 0
fi

if [ ${#missing[@]} -gt 0 ]; then
  say "installing system packages: ${missing[*]}"
  # another apt-get of ours, or a nightly upgrade, may hold the lock
  apt=(apt-get -q -o DPkg::Lock::Timeout=300)
  apt_install=("${apt[@]}" install -y --no-install-recommends)
  if [ -n "$backports" ]; then apt_install+=(-o "Dir::Etc::Preferences=$PWD/ci/$backports.pref"); fi
  unlisted=$backports
  if [[ $(apt-cache policy 2>/dev/null) == *"n=$backports"* ]]; then unlisted=; fi
  if [ "$(id -u)" = 0 ]; then root=(); elif command -v sudo >/dev/null; then root=(sudo); else
    die "these need root and there is no sudo. As root${unlisted:+, with $unlisted among the sources of apt}:" \
        "${apt_install[*]} ${missing[*]}"
  fi
  if [ -n "$unlisted" ]; then
    say "adding the suite $unlisted in /etc/apt/sources.list.d/barometer-backports.list"
    printf 'deb %s %s main\n' "${BAROMETER_MIRROR:-http://deb.debian.org/debian}" "$unlisted" \
      | "${root[@]}" tee /etc/apt/sources.list.d/barometer-backports.list >/dev/null
  fi
  if [[ " ${missing[*]} " == *" postgresql "* ]] && ! [ -e /etc/postgresql-common ]; then
    # a new server of Debian's would begin to run, with a cluster that nobody needs
    "${root[@]}" install -d /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' \
      | "${root[@]}" tee /etc/postgresql-common/createcluster.d/barometer.conf >/dev/null
  fi
  "${root[@]}" "${apt[@]}" update >/dev/null || say "apt-get update failed, trying with the lists that are here"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive "${apt_install[@]}" "${missing[@]}" >&2
fi

install() { .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-compile --no-build-isolation "$@"; }
if [ "$venv" = none ]; then
  say "making the virtual environment .venv from $lock"
  rm -rf .venv
  /usr/bin/python3 -m venv .venv
  # first the build dependencies of libvirt-python
  sed -n '/^setuptools==/,/# via/p' "$lock" | install --require-hashes -r /dev/stdin
elif [ "$venv" = incomplete ]; then
  say "adding to the virtual environment .venv what $lock has besides"
fi
if [ "$venv" = none ] || [ "$venv" = incomplete ]; then
  install --require-hashes -r "$lock"
  # faster than pip, which uses one core; some files are templates and no valid Python
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || :
  remember ci/requirements.lock
  remember "$lock"
fi
if [ "$venv" != current ]; then
  install -e .
  remember pyproject.toml
fi
