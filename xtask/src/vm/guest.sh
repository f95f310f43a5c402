#!/bin/busybox sh
# The first process of a VM. It runs twice: out of the initramfs, where it loads the modules and unpacks the payload,
# and out of the payload, where it runs the job. What it has to tell goes over named virtio ports.

port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = "$1" ]; then
            echo "/dev/${port##*/}"
            return
        fi
    done
    echo /dev/null
}

end() {
    echo "$*" > "$(port control)"
    sync
    reboot -f
}

unpack() {
    export PATH=/bin
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs dev /dev
    for module in /modules/*.ko; do
        insmod "$module" || echo "portolan: module $module is not loaded"
    done
    # Containers need a root that can be left: an initramfs is none.
    mount -t tmpfs -o size=90% tmpfs /root
    cd /root || end failed "there is no root"
    # Without its output: it counts blocks.
    cpio -i -d -m < /dev/vda 2> /tmp.cpio || end failed "unpack the files: $(cat /tmp.cpio)"
    umount /sys /proc
    mount -o move /dev dev
    exec switch_root /root /sbin/portolan-guest
}

serve() {
    export PATH=/usr/sbin:/usr/bin:/usr/local/bin HOME=/root
    busybox mkdir -p /usr/local/bin
    /usr/bin/busybox --install -s /usr/local/bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mkdir -p /dev/pts /dev/shm /results
    mount -t devpts devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    chmod 1777 /tmp
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t bpf bpf /sys/fs/bpf
    hostname portolan-vm
    ip link set lo up
    echo "portolan: the job begins"
    /portolan-job > "$(port stdout)" 2> "$(port stderr)" < /dev/null
    code=$?
    echo "portolan: the job ended with $code"
    tar -c -f "$(port results)" -C /results . || end failed "hand back the results"
    end exit "$code"
}

case "$0" in
    /init) unpack ;;
    *) serve ;;
esac
