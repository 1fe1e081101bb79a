#!/bin/sh
# mmdebstrap's hook: customize.sh ROOTFS TREE UUID makes of the unpacked packages in TREE what an
# installer leaves: users, an initramfs, GRUB with its configuration. UUID: of the root file system.
set -eu
rootfs=$1 tree=$2 uuid=$3

cp -r --no-preserve=ownership "$rootfs/." "$tree"
chroot "$tree" useradd --create-home --gid operator --shell /bin/bash --groups libvirt operator
rm -f "$tree"/etc/ssh/ssh_host_*
# no first boot: caches of the linker, of udev and of users are up to date
touch "$tree/etc/.updated" "$tree/var/.updated"
chroot "$tree" systemctl --quiet enable systemd-networkd.service
# by their sockets: once KVM's module is there, and not while the machine boots
chroot "$tree" systemctl --quiet disable libvirtd.service virtlogd.service
chroot "$tree" systemctl --quiet enable libvirtd.socket virtlogd.socket
# what a machine without a screen does not need: each costs an emulated one a program at every boot
chroot "$tree" systemctl --quiet mask getty@.service serial-getty@.service \
    libvirt-guests.service grub-common.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-pstore.service \
    systemd-random-seed.service systemd-journal-flush.service systemd-network-generator.service \
    systemd-networkd-persistent-storage.service systemd-udev-load-credentials.service \
    user@.service modprobe@.service sys-kernel-config.mount sys-fs-fuse-connections.mount dev-mqueue.mount \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer logrotate.timer systemd-tmpfiles-clean.timer
# emulated machines are slow at unpacking
chroot "$tree" find /usr/lib/modules -name '*.ko.xz' -exec xz --decompress {} +
release=$(ls "$tree/usr/lib/modules")
chroot "$tree" depmod "$release"
chroot "$tree" update-initramfs -u -k "$release"

# what grub-install does on a machine
modules=/usr/lib/grub/i386-pc
mkdir -p "$tree/boot/grub"
cp -r "$tree$modules" "$tree/boot/grub/"
chroot "$tree" grub-mkimage --directory $modules --format i386-pc --prefix '(hd0,msdos1)/boot/grub' \
    --output /boot/grub/i386-pc/core.img biosdisk part_msdos ext2
chroot "$tree" grub-editenv /boot/grub/grubenv create

# grub-mkconfig asks where / is: not yet on the disk that it will be on
probe=$tree/usr/sbin/grub-probe
mv "$probe" "$probe.real"
cat > "$probe" << END
#!/bin/sh
case "\$*" in
    *--target=device*) echo /dev/vda1 ;;
    *--target=fs_uuid*) echo $uuid ;;
    *--target=fs*) echo ext2 ;;
    *--target=partmap*) echo msdos ;;
    *--target=hints_string*) echo --hint-bios=hd0,msdos1 ;;
    *--target=compatibility_hint* | *--target=drive*) echo hd0,msdos1 ;;
    *--target=abstraction* | *--target=partuuid* | *--target=cryptodisk_uuid*) ;;
    *) echo "grub-probe: unexpected: \$*" >&2; exit 1 ;;
esac
END
chmod 755 "$probe"
chroot "$tree" grub-mkconfig -o /boot/grub/grub.cfg
mv "$probe.real" "$probe"
