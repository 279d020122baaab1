#!/bin/sh
# Install the third-party parts that tests run against: Orthanc, DCMTK, PostgreSQL, and PixelMed's SR validator.
# Does nothing where they are installed; needs root or sudo otherwise.
set -eu

packages="orthanc orthanc-dicomweb orthanc-gdcm dcmtk postgresql"
packages="$packages libpixelmed-java pixelmed-apps libsaxonhe-java default-jre-headless"

missing=""
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=absent
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "tests/peers.sh: needs root or sudo to install:$missing" >&2; exit 1; }
    as_root="sudo"
fi

$as_root apt-get update -q
# shellcheck disable=SC2086  # a list of packages
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing

# Debian starts what it installs; tests start their own, on free ports and in folders of their own.
for service in orthanc postgresql; do
    if [ -x "/etc/init.d/$service" ]; then
        $as_root service "$service" stop >/dev/null 2>&1 || true
    fi
done
