#!/usr/bin/env bash
# install-deps.sh - what weir needs to build and to run its tests, on Debian 12 and 13.
#
# Safe to repeat: with everything in place it says so and returns at once, without network or root.
# Everything comes through apt from the mirror this system is already set up with. A library that
# this Debian lacks, or has too old, is built from the next Debian's own source package
# (from_next_debian below), into /usr/local.
set -euo pipefail

PACKAGES=(
    # build
    build-essential cmake ninja-build pkg-config
    # libraries: YAML, decompression, hashing
    libcyaml-dev libyaml-dev zlib1g-dev libzstd-dev libxxhash-dev
    # libraries: event loop, TLS (llhttp, hiredis: see below)
    libuv1-dev libssl-dev
    # weir top
    libncurses-dev
    # libraries: records that controllers and engines exchange
    protobuf-c-compiler libprotobuf-c-dev
    # libraries: engines' KV events (messages, and what they are written in)
    libzmq3-dev libmpack-dev
    # tests: units, fuzzing and sanitizers, format check, the checks written in Python, Redis
    libcmocka-dev clang libclang-rt-dev clang-format python3 redis-server
)
PREFIX=/usr/local
NEXT_SUITE=trixie # the Debian after 12

log() { printf 'install-deps: %s\n' "$*" >&2; }
die() {
    log "$1"
    shift
    for hint in "$@"; do printf '              %s\n' "$hint" >&2; done
    exit 1
}

# --- what is here already ----------------------------------------------------------------------

missing_packages() {
    local have p
    # dpkg-query fails when it knows nothing of one of the names: that is an answer, not an error
    have=" $({ dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null || true; } |
        sed -n 's/^ii *//p' | tr '\n' ' ') "
    for p in "$@"; do
        [[ $have == *" $p "* ]] || printf '%s\n' "$p"
    done
}

# With TLS; 0.14 of Debian 12 has neither that nor RESP3.
have_hiredis() { pkg-config --atleast-version=1.0 hiredis hiredis_ssl 2>/dev/null; }

have_yyjson() { pkg-config --atleast-version=0.8 yyjson 2>/dev/null; }

# Debian 13 has llhttp as a library; Debian 12 ships its C sources, which the build compiles.
have_llhttp() {
    pkg-config --atleast-version=8.1 libllhttp 2>/dev/null || [ -e /usr/share/llhttp/llhttp.c ]
}

# --- apt ---------------------------------------------------------------------------------------

SUDO=()
need_root() {
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null ||
        die "root is needed to install: $*" "run this script as root, or install sudo"
    SUDO=(sudo)
}

APT_OPTIONS=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
apt_get() {
    "${SUDO[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "${APT_OPTIONS[@]}" "$@"
}

UPDATED=
apt_update_once() {
    [ -z "$UPDATED" ] || return 0
    log "reading the package lists"
    apt_get update >"$TMP/update.log" 2>&1 || {
        tail -n 5 "$TMP/update.log" >&2
        die "apt-get update failed" "is the network up, and do the apt sources of this system work?"
    }
    UPDATED=1
}

apt_install() {
    apt_update_once
    log "installing: $*"
    apt_get install -y --no-install-recommends "$@" >"$TMP/install.log" 2>&1 || {
        tail -n 15 "$TMP/install.log" >&2
        die "apt could not install: $*"
    }
}

apt_has() { apt-cache show "$1" >/dev/null 2>&1; }

# The mirror that serves this system's own suite ($1), from its .sources and .list files; later
# suites live beside it. Suites like bookworm-security are elsewhere, hence the exact match.
system_mirror() {
    local files=()
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
        /etc/apt/sources.list.d/*.sources; do
        [ -r "$f" ] && files+=("$f")
    done
    [ ${#files[@]} -gt 0 ] || return 0
    awk -v suite="$1" '
        function flush(   i, n, s) {
            n = split(suites, s, " ")
            for (i = 1; i <= n; i++)
                if (s[i] == suite && uri != "" && off == 0) print uri
            suites = uri = key = ""; off = 0
        }
        FNR == 1 { flush(); deb822 = FILENAME ~ /\.sources$/ }
        /^[ \t]*#/ { next }
        !deb822 && ($1 == "deb" || $1 == "deb-src") {
            line = $0
            sub(/\[[^]]*\]/, "", line)          # options such as [signed-by=...]
            split(line, w, " ")
            if (w[3] == suite) print w[2]
            next
        }
        deb822 && /^[ \t]*$/ { flush(); next }
        deb822 && /^[A-Za-z-]+:/ {
            key = tolower($1); value = $0; sub(/^[^:]*:[ \t]*/, "", value)
            if (key == "uris:") { split(value, w, " "); uri = w[1] }
            if (key == "suites:") suites = value
            if (key == "enabled:" && tolower(value) == "no") off = 1
            next
        }
        deb822 && key == "suites:" { suites = suites " " $0 }
        END { flush() }
    ' "${files[@]}" | head -n 1
}

# Fetch the source package NAME of the next Debian into $TMP/NAME and print its unpacked folder.
# apt reads a private sources file and keeps its lists in a private folder, so the system's own
# configuration never sees the other suite. apt checks the suite's signature against Debian's
# keyring, and every file against the checksums signed with it.
fetch_next_source() {
    local name=$1 dir=$TMP/$1 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    mirror=$(system_mirror "$codename")
    [ -n "$mirror" ] ||
        die "found no apt source for '$codename' in /etc/apt/sources.list or sources.list.d" \
            "add this system's usual Debian mirror there; $name is fetched through it"

    # The keys of the next Debian come with point releases of this one's keyring package.
    if [ ! -e /usr/share/keyrings/debian-archive-$NEXT_SUITE-automatic.gpg ]; then
        apt_install debian-archive-keyring
        [ -e /usr/share/keyrings/debian-archive-$NEXT_SUITE-automatic.gpg ] ||
            die "debian-archive-keyring of this system does not know Debian $NEXT_SUITE yet" \
                "enable ${codename}-updates in the apt sources and run this script again"
    fi

    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/src"
    cat >"$dir/next.sources" <<SOURCES
Types: deb-src
URIs: $mirror
Suites: $NEXT_SUITE
Components: main
Signed-By: $keyring
SOURCES
    # apt downloads as the user _apt when it is started by root
    [ "$(id -u)" -ne 0 ] || ! id _apt >/dev/null 2>&1 || chown -R _apt "$dir"
    local next=(apt-get -q -o Acquire::Retries=3
        -o Dir::Etc::sourcelist="$dir/next.sources" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache")

    log "fetching $name from Debian $NEXT_SUITE's sources"
    "${next[@]}" update >"$dir/log" 2>&1 || {
        tail -n 5 "$dir/log" >&2
        die "could not read the source list of Debian $NEXT_SUITE" "is the network up?"
    }
    if (cd "$dir/src" && "${next[@]}" source --download-only "$name") >"$dir/log" 2>&1; then
        (cd "$dir/src" && dpkg-source --no-check -x ./*.dsc unpacked) >>"$dir/log" 2>&1 || {
            tail -n 5 "$dir/log" >&2
            die "could not unpack $name"
        }
    elif (cd "$dir/src" && "${next[@]}" source --tar-only "$name") >>"$dir/log" 2>&1; then
        # Some mirrors lack a package's .dsc. The upstream archive alone is as well checked (its
        # checksum is in the signed list); what is missing are Debian's packaging files.
        log "the mirror lacks $name's packaging files; building its upstream archive as it is"
        mkdir "$dir/src/unpacked"
        tar -xf "$dir/src/${name}"_*.orig.tar.* -C "$dir/src/unpacked" --strip-components=1
    else
        grep -E '^(E|W|Err)' "$dir/log" >&2 || tail -n 5 "$dir/log" >&2
        die "could not fetch the source package $name of Debian $NEXT_SUITE" "is the network up?"
    fi
    printf '%s\n' "$dir/src/unpacked"
}

# from_next_debian NAME [CMAKE-OPTIONS]: build the next Debian's NAME as a static, position-
# independent library and install it under $PREFIX with its pkg-config and CMake files.
from_next_debian() {
    local name=$1 source build
    shift
    source=$(fetch_next_source "$name")
    build=$TMP/$name/build
    log "building $name into $PREFIX"
    {
        cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
            -DCMAKE_INSTALL_PREFIX="$PREFIX" -DBUILD_SHARED_LIBS=OFF \
            -DCMAKE_POSITION_INDEPENDENT_CODE=ON "$@" &&
            cmake --build "$build" &&
            "${SUDO[@]}" cmake --install "$build"
    } >"$TMP/$name/build.log" 2>&1 || {
        tail -n 15 "$TMP/$name/build.log" >&2
        die "could not build $name"
    }
}

# --- main --------------------------------------------------------------------------------------

command -v apt-get >/dev/null || die "this script needs a Debian system with apt (12 or 13)"
mapfile -t missing < <(missing_packages "${PACKAGES[@]}")
if [ ${#missing[@]} -eq 0 ] && have_yyjson && have_llhttp &&
    have_hiredis; then
    log "everything is in place"
    exit 0
fi

TMP=$(mktemp -d)
chmod 755 "$TMP"
trap 'rm -rf "$TMP"' EXIT

if [ ${#missing[@]} -gt 0 ]; then
    need_root "${missing[@]}"
    apt_install "${missing[@]}"
fi
if ! have_llhttp; then
    need_root llhttp
    apt_has libllhttp-dev || apt_update_once
    if apt_has libllhttp-dev; then
        apt_install libllhttp-dev
    else
        apt_install node-llhttp
    fi
fi
if ! have_yyjson; then
    need_root yyjson
    apt_has libyyjson-dev || apt_update_once
    if apt_has libyyjson-dev; then
        apt_install libyyjson-dev
    else
        from_next_debian yyjson
        have_yyjson || die "yyjson was built, but pkg-config does not find it under $PREFIX"
    fi
fi
if ! have_hiredis; then
    need_root hiredis
    apt_update_once
    if [[ $(apt-cache policy libhiredis-dev | sed -n 's/^ *Candidate: //p') == [1-9]* ]]; then
        apt_install libhiredis-dev
    else
        from_next_debian hiredis -DENABLE_SSL=ON -DDISABLE_TESTS=ON
        have_hiredis || die "hiredis was built, but pkg-config does not find it under $PREFIX"
    fi
fi
log "done"
