#!/bin/bash
# A small Debian with git and certificates, as a root file system in target/images/base: `belljar run --image target/images/base`.
set -euo pipefail
cd "$(dirname "$0")/../.."
rootfs=target/images/base
fresh=$rootfs.new
rm -rf "$fresh"
mkdir -p target/images
# The same packages give the same files.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- images/base 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
mmdebstrap --variant=minbase --include=ca-certificates,git --format=directory bookworm "$fresh"
# Device nodes come from belljar, never from an image.
rm -rf "$fresh"/dev/*
rm -rf "$rootfs"
mv "$fresh" "$rootfs"
echo "$rootfs: $(du -sh "$rootfs" | cut -f1)"
