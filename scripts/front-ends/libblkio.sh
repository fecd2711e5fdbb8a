#!/bin/sh
# Gets libblkio, a block device client with a vhost-user front-end, and builds its example programs blkio-bench,
# blkio-copy and blkio-info. Nothing outside the cache directory changes, and no root is needed.
#
#   libblkio.sh         builds what is missing and prints the directory of the programs
#   libblkio.sh where   prints that directory, or fails when they are not built
#
# The cache is $HUSHRING_CACHE_DIR, by default ${XDG_CACHE_HOME:-$HOME/.cache}/hushring.
set -eu

cache=${HUSHRING_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hushring}
programs=$cache/libblkio/bin

if [ -x "$programs/blkio-info" ]; then
  echo "$programs"
  exit
fi
[ "${1:-build}" != where ] || exit 1

fail() {
  echo "libblkio.sh: $*" >&2
  exit 1
}
command -v apt-get >/dev/null || fail 'needs a system with apt-get: libblkio comes as a Debian package'
command -v cc >/dev/null || fail 'needs a C compiler: apt-get install gcc libc6-dev'

mkdir -p "$cache"
stage=$(mktemp -d "$cache/libblkio.XXXXXX")
trap 'rm -rf "$stage"' EXIT
cd "$stage"

set -- -qq -o APT::Sandbox::User=
if ! apt-cache show libblkio-dev >/dev/null 2>&1; then
  # This release of the system has no libblkio. It comes from the first Debian release that has, read from the mirror
  # the system already uses, with an apt state of its own so that the system stays on its release. The package
  # needs nothing newer than glibc 2.34.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
  [ -n "$mirror" ] || fail 'apt knows no Debian mirror, or has not read it yet: run apt-get update'
  mkdir -p apt/sources apt/lists/partial apt/archives/partial
  cat >apt/sources/trixie.sources <<SOURCES
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Targets: Packages
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
  set -- "$@" -o Dir::State="$stage/apt" -o Dir::Cache="$stage/apt" \
    -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$stage/apt/sources"
  apt-get "$@" update >&2
fi
apt-get "$@" download libblkio1 libblkio-dev >&2

for package in ./*.deb; do
  dpkg-deb --extract "$package" unpacked
done
cd unpacked
mkdir bin
libraries=$(dirname usr/lib/*/libblkio.so)
for program in blkio-bench blkio-copy blkio-info; do
  cc -O2 -o "bin/$program" "usr/share/doc/libblkio-dev/examples/$program.c" \
    -Iusr/include "-L$libraries" "-Wl,-rpath,\$ORIGIN/../$libraries" -lblkio -lpthread
done

# A rename is atomic: whoever runs this at the same time sees all of it or nothing, and the first one wins.
mv -T "$stage/unpacked" "$cache/libblkio" 2>/dev/null || [ -x "$programs/blkio-info" ] ||
  fail "cannot write $cache/libblkio"
echo "$programs"
