#!/usr/bin/env bash
# Installs what is missing to build and test on Debian 12 or Ubuntu 24.04; does nothing when nothing is missing.
#
#   launch/install_packages.sh [PACKAGE...]     PACKAGES are wanted besides those below
#
# Needs root or sudo only when something is missing; without either it prints the command to run and exits with 1.
set -euo pipefail

packages=(build-essential cmake ninja-build ccache pkg-config python3
  libopenmpi-dev openmpi-bin libopenblas-dev
  libboost-program-options-dev libfmt-dev nlohmann-json3-dev libsimdjson-dev
  libzstd-dev zstd libsentencepiece-dev libxxhash-dev libgtest-dev "$@")

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

install="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
  as_root=(sudo)
else
  echo "Packages are missing and this user is neither root nor can use sudo. Run as root, then start again:" >&2
  echo "  $install" >&2
  exit 1
fi
echo "Installing: ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "$install"
