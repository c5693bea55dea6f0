#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
#
# get_blender.sh DIR: a real Blender 4.3 with a window, in a Debian 13 chroot at DIR. About 70 s, 1.8 GB. Needs Debian and root.
# Unmount everything below DIR before removing it.
set -euo pipefail
[ $# = 1 ] || { sed -n 5,6p "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[ -x "$dir/usr/bin/blender" ] && exit 0
export DEBIAN_FRONTEND=noninteractive
command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v security | head -n 1)  # the one this machine uses
debootstrap --variant=minbase trixie "$dir" "${mirror%/}" >"$dir.log" 2>&1
cp /etc/resolv.conf "$dir/etc/resolv.conf"
apt-config dump | grep -iE '^(Acquire::.*proxy|Acquire::https::CaInfo)' >"$dir/etc/apt/apt.conf.d/99host" || true
mountpoint -q "$dir/proc" || mount -t proc proc "$dir/proc"
chroot "$dir" apt-get update -qq >>"$dir.log" 2>&1
chroot "$dir" apt-get install -y -qq --no-install-recommends \
  blender libgl1-mesa-dri libegl1 xvfb xauth imagemagick xdotool python3-numpy >>"$dir.log" 2>&1
chroot "$dir" blender --version | head -n 1
