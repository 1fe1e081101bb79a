#!/usr/bin/env bash
# Does an emulated host (TCG) hang when its VMs end? Boots a Debian kernel under QEMU without KVM, with
# an initramfs of nothing but vmloop.c, and prints what that says on the serial console.
#
#   run.sh SECONDS [WORDS FOR THE KERNEL] [-- QEMU OPTIONS]
#
#   KERNEL=linux-image-cloud-amd64  package to take the kernel from, by apt-get download; or a .deb
#   QEMU=qemu-system-x86_64  CPUS=2
#   PAUSE=0  milliseconds, at most, that the CPUs may idle between two VMs
#
# Needs: qemu-system-x86, gcc, libc6-dev, busybox-static, kmod, cpio.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
seconds=$1 words=${2:-} options=()
shift $(($# > 1 ? 2 : 1))
[ "${1:-}" = -- ] && options=("${@:2}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=${KERNEL:-linux-image-cloud-amd64}
case $package in *.deb) package=$(readlink -f "$package") ;; esac
cd "$work"
case $package in
    *.deb) cp "$package" . ;;
    *)  # a package without a version depends on the one with the kernel
        real=$(apt-cache depends --important "$package" |
               awk '/Depends: linux-image/ {print $2; exit}')
        apt-get -q -o APT::Sandbox::User=root download "${real:-$package}" > /dev/null ;;
esac
dpkg-deb -x ./*.deb kernel
release=$(basename kernel/boot/vmlinuz-* | sed s/vmlinuz-//)
[ -d kernel/lib ] || ln -s usr/lib kernel/lib
depmod -b kernel "$release"

mkdir -p root/bin root/modules root/proc root/dev
cp /bin/busybox root/bin/
gcc -O2 -static -o root/bin/vmloop "$here/vmloop.c"
modprobe -d kernel -S "$release" --show-depends kvm-amd | while read -r _ module _; do
    cp "$module" root/modules/
    basename "$module" >> root/modules/order
done
cat > root/init <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
read -r words < /proc/cmdline
while read -r module; do
    case $module in
        *.xz) $b unxz "/modules/$module" ;;
    esac
    $b insmod "/modules/${module%.xz}"
done < /modules/order
seconds=${words##*vmloop=}
pause=${words##*vmpause=}
/bin/vmloop "${seconds%% *}" "${pause%% *}"
$b poweroff -f
INIT
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet) > initramfs

"${QEMU:-qemu-system-x86_64}" --version | head -1
echo "kernel $release, ${CPUS:-2} CPUs, words: $words"
timeout $((seconds + 300)) "${QEMU:-qemu-system-x86_64}" -nodefaults -display none -no-reboot \
    -machine q35,accel=tcg -cpu max,vgif=off -smp "${CPUS:-2}" -m 1G "${options[@]}" \
    -kernel "kernel/boot/vmlinuz-$release" -initrd initramfs -serial stdio \
    -append "console=ttyS0 panic=-1 tsc=reliable no_timer_check sysctl.kernel.hung_task_timeout_secs=30 $words vmloop=$seconds vmpause=${PAUSE:-0}" \
    < /dev/null | grep --line-buffered -aE 'vmloop:|INFO:|BUG:|panic|hung|stall'
