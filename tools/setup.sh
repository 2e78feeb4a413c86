#!/bin/bash
# Makes sure that what a make target needs from the machine is there: tools/setup.sh run|test|bench|images.
# On Debian, as root, what is missing is installed, and said first; anywhere else it is named, and this stops.
set -euo pipefail

target=${1:?usage: tools/setup.sh run|test|bench|images}
packages=()
reasons=()

# need PROGRAM PACKAGE WHY
need() {
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; then
        packages+=("$2")
        reasons+=("  $2: $3")
    fi
}

if ! command -v cargo >/dev/null; then
    echo "setup: the Rust toolchain is missing (cargo is not in PATH); see https://rustup.rs" >&2
    exit 1
fi

need cc gcc "compiles the C parts of SQLite, tree-sitter and ring"
[ -e /usr/include/stdlib.h ] || { packages+=(libc6-dev) && reasons+=("  libc6-dev: headers for the same"); }
case $target in
run)
    need python3 python3 "the demo's request to a host that is refused"
    ;;
test)
    need runc runc "tests hold our launcher to what runc does with the same bundle"
    need runsc runsc "every promise of a sandbox is held on gVisor too"
    need dockerd docker.io "and in containers of Docker's, by a daemon that the tests start and end"
    need podman podman "and at Podman, whose service speaks Docker's API"
    need linux.uml user-mode-linux "a machine with control groups of version 2"
    need mke2fs e2fsprogs "makes that machine's root file system"
    need newuidmap uidmap "tests run as an ordinary user with a range of ids too"
    need busybox busybox-static "a root file system of one program, for tests"
    need git git "tests work in repositories, and see what git outside makes of them"
    need docker-registry docker-registry "images are pulled from a real registry, on loopback"
    need skopeo skopeo "fills that registry"
    need python3 python3 "small clients inside test sandboxes"
    need dbus-run-session dbus-daemon "a session bus of the test's own, for the keyring"
    need gnome-keyring-daemon gnome-keyring "a real Secret Service, for keyring:NAME"
    need ip iproute2 "links the network namespaces that tests make"
    need openssl openssl "makes the certificates of test servers"
    need curl curl "goes out through the proxy in tests, as do the next"
    need wget wget "the same"
    need git git "the same"
    need pip3 python3-pip "the same"
    need node nodejs "the same"
    need npm npm "the same"
    need javac default-jdk-headless "the same, for a program in Java"
    need go golang-go "the same, for one in Go"
    need ssh openssh-client "the same"
    need sshd openssh-server "is what ssh reaches in tests"
    need pgrep procps "looks for processes that a sandbox left"
    python3 -c 'import ensurepip' 2>/dev/null || { packages+=(python3-venv) && reasons+=("  python3-venv: holds the collector that the tests export to"); }
    ;;
bench)
    need runc runc "is measured in the same run"
    need bwrap bubblewrap "is measured in the same run"
    need busybox busybox-static "a root file system of one program, for the peers"
    need docker docker.io "is measured in the same run, with a daemon of the bench's own"
    need squid squid "a proxy, is measured in the same run"
    need tinyproxy tinyproxy "a proxy, is measured in the same run"
    ;;
images)
    need mmdebstrap mmdebstrap "makes root file systems from Debian packages"
    ;;
*)
    echo "setup: \"$target\" is not run, test, bench or images" >&2
    exit 1
    ;;
esac

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
        echo "setup: installing from Debian:" >&2
        printf '%s\n' "${reasons[@]}" >&2
        export DEBIAN_FRONTEND=noninteractive
        # Programs are wanted, not their services: policy-rc.d keeps Debian from starting any (invoke-rc.d(8)).
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
            trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        fi
        apt-get update -qq >&2
        apt-get install -qq -y --no-install-recommends "${packages[@]}" >&2
    else
        echo "setup: missing, and only root on Debian may install it here:" >&2
        printf '%s\n' "${reasons[@]}" >&2
        exit 1
    fi
fi

# The guest is smallest with musl; build.rs takes the machine's own libc, linked statically, where that target cannot be had.
musl="$(uname -m)-unknown-linux-musl"
libs=$(rustc --print target-libdir --target "$musl" 2>/dev/null || true)
if [ ! -d "$libs" ]; then
    echo "setup: adding the Rust target $musl for a smaller guest" >&2
    if ! { command -v rustup >/dev/null && rustup target add "$musl" >&2; }; then
        echo "setup: it cannot be added; the guest will use this machine's libc" >&2
    fi
fi
