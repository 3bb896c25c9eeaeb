#!/bin/sh
# Process 1 of namespaces in which libvirt has a machine of its own: no network but
# what it makes, and the files below $1. All ends when standard input does.
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for place in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mkdir -p "/$place"
    mount --bind "$1/$place" "/$place"
done
ip link set lo up
virtlogd --daemon
libvirtd --daemon
echo ready
# This shell stays: it reaps the processes that libvirt leaves to process 1.
cat >/dev/null
exit
