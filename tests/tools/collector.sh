#!/bin/sh
# Installs the OpenTelemetry collector that the tests of the exporter talk to: rotel, from PyPI, into a folder below target/.
# Prints the path of its program. Does nothing when it is there already.
set -eu
version=0.0.1a15
folder=${CARGO_TARGET_DIR:-$(cd "$(dirname "$0")/../.." && pwd)/target}/tools/rotel
program=$folder/rotel-agent

if [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ]; then
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "rotel==$version"
    # Below a folder that has Python's version in its name.
    ln -s "$(find "$folder" -name rotel-agent -type f)" "$program"
    echo "$version" >"$folder/version"
fi
echo "$program"
