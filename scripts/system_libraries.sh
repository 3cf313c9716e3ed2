#!/usr/bin/env bash
# What the operating system must bring: shared libraries that wheels link to but do not carry, and python's venv module.
#
# The list is what `ldd` reports as "not found" for every .so of the pinned wheels inside a bare Debian 12 and a bare
# Debian 13 (debootstrap --variant=minbase), less what the wheels find in their own folders at run time. To make it
# again: unpack the wheels in such a folder and run ldd over them in a chroot.
#
# As root this installs what is missing. Otherwise it prints the command to run and exits with 1.
set -euo pipefail

# soname               Debian/Ubuntu package    who links to it
LIBRARIES="
libusb-1.0.so.0        libusb-1.0-0             open3d
libX11.so.6            libx11-6                 open3d
libGL.so.1             libgl1                   open3d
libEGL.so.1            libegl1                  open3d
libidn2.so.0           libidn2-0                open3d
libexpat.so.1          libexpat1                rasterio
"

export PATH="$PATH:/usr/sbin:/sbin"   # ldconfig is not on every user's path
known=$(ldconfig -p)
missing_sonames=()
packages=()
while read -r soname package _; do
    [ -n "$soname" ] || continue
    if ! grep -q "[[:space:]]$soname " <<<"$known"; then
        missing_sonames+=("$soname")
        packages+=("$package")
    fi
done <<<"$LIBRARIES"

# Debian and Ubuntu ship python3 without the module that makes environments. Named by the caller: setup.sh knows which
# python it picked.
if [ -n "${LACUNA_NEEDS_VENV_OF:-}" ]; then
    packages+=("$LACUNA_NEEDS_VENV_OF-venv")
fi

[ "${#packages[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "Missing on this system: ${missing_sonames[*]} ${LACUNA_NEEDS_VENV_OF:+and the venv module of $LACUNA_NEEDS_VENV_OF}." >&2
    echo "There is no apt-get here: install the packages of this distribution that hold them, then run this again." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Missing system packages: ${packages[*]}. Installing them takes root; run this, then repeat the last command:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}" >&2
    exit 1
fi
echo "Installing system packages: ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -q -y --no-install-recommends "${packages[@]}" >/dev/null
