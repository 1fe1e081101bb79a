#!/usr/bin/env bash
# Everything barometer needs on a Debian 12 or 13 machine, idempotent.
#
#   ci/setup.sh            install what is missing, say what; silent and quick when nothing is
#   ci/setup.sh --check    change nothing; exit 1 and list what is missing
#
# Root (or sudo) is asked for only when system packages are missing. Everything else is an
# ordinary user's: the virtual environment .venv beside this folder, and the caches of
# barometer itself, which it makes when it first needs them.
set -euo pipefail
cd "$(dirname "$0")/.."

check_only=0
[ "${1:-}" = "--check" ] && check_only=1

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 3; }

# What each package is for:
#   qemu-system-x86 libvirt-*          the nested host, through libvirt's embedded driver
#   mmdebstrap e2fsprogs uidmap        the host image, built without root where that is allowed
#   kmod                               depmod over a kernel's modules
#   git                                sources and series of kernels that are built, bisection
#   openssh-client                     qemu+ssh:// to the host's libvirt
#   chromium                           the browser lane of the tests: reports as a reader sees them
#   make                               the tests: what the kernel's Makefiles say
#   fdisk mtools                       the tests: a machine's EFI system partition
#   libvirt-dev gcc pkgconf python3-*  libvirt-python is published as source only
packages=(
  qemu-system-x86 libvirt-daemon-driver-qemu
  mmdebstrap e2fsprogs uidmap kmod git openssh-client openssh-server debian-archive-keyring ca-certificates
  chromium make fdisk mtools
  libvirt-dev gcc pkgconf python3-dev python3-venv
)
# On Debian 12 these come from bookworm-backports: its own QEMU (7.2) neither aligns BAR
# mappings nor knows the machine types used here, and its libvirt (9.0) is as old.
from_backports=(qemu-system-x86 libvirt-daemon-driver-qemu libvirt-dev)

. /etc/os-release
case "${ID:-}:${VERSION_ID:-}" in
  debian:12) backports=bookworm-backports ;;
  debian:13) backports= ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}; Debian 12 and 13 are supported." \
         "On another distribution install the equivalents of: ${packages[*]}" \
         "(QEMU 10 or later, libvirt 11 or later, Python 3.11 or later), then:" \
         "python3 -m venv .venv && .venv/bin/pip install --require-hashes -r ci/requirements.lock && .venv/bin/pip install --no-deps -e ." ;;
esac
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 runners are supported, this one is $(dpkg --print-architecture)"

installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }
missing=()
for p in "${packages[@]}"; do installed "$p" || missing+=("$p"); done
if [ -n "$backports" ]; then   # an old QEMU or libvirt that is already there must be replaced
  for p in "${from_backports[@]}"; do
    case " ${missing[*]} " in *" $p "*) continue ;; esac
    dpkg-query -W -f '${Version}' "$p" | grep -q bpo12 || missing+=("$p")
  done
fi

stamp=.venv/.barometer-lock
want=$(sha256sum ci/requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)-$(readlink -f .)
if [ "$check_only" = 1 ]; then
  [ ${#missing[@]} = 0 ] || { say "missing system packages: ${missing[*]}"; exit 1; }
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] || { say "the virtual environment .venv is missing or out of date"; exit 1; }
  exit 0
fi

if [ ${#missing[@]} -gt 0 ]; then
  say "installing system packages: ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then root=(); elif command -v sudo >/dev/null; then root=(sudo); else
    die "these need root and there is no sudo. As root: apt-get install ${backports:+-t $backports }${missing[*]}"
  fi
  if [ -n "$backports" ] && ! apt-cache policy 2>/dev/null | grep -q "n=$backports"; then
    say "adding the suite $backports in /etc/apt/sources.list.d/barometer-backports.list"
    printf 'deb %s %s main\n' "${BAROMETER_MIRROR:-http://deb.debian.org/debian}" "$backports" \
      | "${root[@]}" tee /etc/apt/sources.list.d/barometer-backports.list >/dev/null
  fi
  "${root[@]}" apt-get update -q >/dev/null || say "apt-get update failed, trying with the lists that are here"
  plain=() ported=()
  for p in "${missing[@]}"; do
    case " ${from_backports[*]} " in *" $p "*) ported+=("$p") ;; *) plain+=("$p") ;; esac
  done
  apt_install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends)
  if [ ${#ported[@]} -gt 0 ]; then "${apt_install[@]}" ${backports:+-t "$backports"} "${ported[@]}" >&2; fi
  if [ ${#plain[@]} -gt 0 ]; then "${apt_install[@]}" "${plain[@]}" >&2; fi
fi

if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
  say "making the virtual environment .venv from ci/requirements.lock"
  rm -rf .venv
  /usr/bin/python3 -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r ci/requirements.lock
  .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
  printf '%s\n' "$want" > "$stamp"
fi
