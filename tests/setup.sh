#!/bin/sh
# Installs what building and testing needs, where it is missing (Debian, Ubuntu);
# `setup.sh vagrant` also Vagrant, `setup.sh libvirt` also what runs its machines.
set -eu

missing=
need() { # command package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need cc gcc
need make make
need pkg-config pkg-config
need mmdebstrap mmdebstrap
need skopeo skopeo
need podman podman
need buildah buildah
need ip iproute2
need nft nftables
need iptables iptables
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need mkfs.ext4 e2fsprogs
need zstd zstd
need curl curl
need jq jq
need fio fio
with=${1:-}
if [ "$with" = vagrant ] || [ "$with" = libvirt ]; then
    need vagrant vagrant
    dpkg -s vagrant-libvirt >/dev/null 2>&1 || missing="$missing vagrant-libvirt"
fi
if [ "$with" = libvirt ]; then
    need libvirtd "libvirt-daemon-system libvirt-daemon-driver-qemu"
    need dnsmasq dnsmasq-base
fi
[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"

for tool in cargo go; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "setup: $tool is missing; install Rust 1.95 or later and Go 1.26 or later" >&2
        exit 1
    }
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing:$missing" >&2
    echo "setup: install them, or run this as root on Debian or Ubuntu" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq --no-install-recommends $missing
