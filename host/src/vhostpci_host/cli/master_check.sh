#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Check from inside that a VM is the confined master of the device @NAME@: that the
# memory which its slave sees holds the card's rings and packets, and nothing else.
#
# Run it in the master, as root, after each change of its kernel or its devices:
#     sh check.sh [MAC of the card]
# It needs nothing but a POSIX shell with awk, dd, od and sed (those of busybox do), and
# changes nothing.  Exit status: 0 all is as it should be, 1 something is not.

set -u
LC_ALL=C
export LC_ALL

# What `vhostpci-host master-check` filled in.
MAC=${1:-@MAC@}
POOL_START=@POOL_START@ POOL_END=@POOL_END@    # the bounce pool (swiotlb)
RINGS_START=@RINGS_START@ RINGS_END=@RINGS_END@  # the ring area (CMA), right above it
# MiB that an initrd may have; nothing on a machine that loads it far away.
BIOS_INITRD=@BIOS_INITRD@ EFI_INITRD=@EFI_INITRD@
WORDS='@WORDS@'

# Tests put another machine's /proc, /sys, /boot and the output of dmesg there.
ROOT=${VHOSTPCI_ROOT-}
PAGES_OF_A_MIB=256 # x86-64, and the pages of 4 KiB that arm64 kernels of Debian have
KERNELS="of Debian's kernels these can: sid's for amd64 (7.x), and those of Debian 12 \
and 13 for arm64"

checks=0 wrongs=0 log=

ok() {
    checks=$((checks + 1))
    printf 'ok     %s: %s\n' "$1" "$2"
}

# Arguments: the check, what was found, what to do.
wrong() {
    checks=$((checks + 1)) wrongs=$((wrongs + 1))
    printf 'wrong  %s: %s\n       repair  %s\n' "$1" "$2" "$3"
}

# --- what the machine says ------------------------------------------------------------

read_log() {
    if [ "$ROOT" ]; then
        log=$(cat "$ROOT/dmesg")
    else
        log=$(dmesg)
        # The kernel's own buffer forgets the oldest lines, and a journal may have them.
        case $log in
        *'Command line:'* | *'Kernel command line:'*) ;;
        *) log=$(journalctl -k -b -q -o cat 2>/dev/null || dmesg) ;;
        esac
    fi
}

# Print the lines of the kernel's log that match, as sed's command makes them.
log_lines() {
    printf '%s\n' "$log" | sed -n "$1"
}

whole_log() {
    case $log in
    *'ommand line:'*) return 0 ;;
    esac
    return 1
}

NO_LOG="the kernel's log no longer begins with the boot, so it cannot be told"
EARLIER="run this soon after the boot, or with log_buf_len=4M among the kernel's words"

# Print the value of an option of the kernel's configuration: y, n, or nothing if no
# configuration is there.
config() {
    release=$(cat "$ROOT/proc/sys/kernel/osrelease")
    if [ -r "$ROOT/proc/config.gz" ]; then
        text=$(zcat <"$ROOT/proc/config.gz")
    elif [ -r "$ROOT/boot/config-$release" ]; then
        text=$(cat "$ROOT/boot/config-$release")
    else
        return 0
    fi
    case "
$text
" in
    *"
$1=y
"*) echo y ;;
    *) echo n ;;
    esac
}

# --- the checks -----------------------------------------------------------------------

check_kernel() {
    case $(config CONFIG_DMA_CMA) in
    y) ok kernel "it has CONFIG_DMA_CMA" ;;
    n)
        wrong kernel "it is built without CONFIG_DMA_CMA, so the rings cannot be \
placed" "boot another kernel: $KERNELS"
        ;;
    *)
        if [ "$(log_lines '/cma: Reserved/p')" ]; then
            ok kernel "it reserved memory for CMA at its boot"
        else
            wrong kernel "neither its configuration nor its log shows CONFIG_DMA_CMA" \
                "boot a kernel that has it: $KERNELS"
        fi
        ;;
    esac
}

# Print words, each in a line and without quotes: a blank between quotes is a part of
# its word.
one_a_line() {
    awk '{
        n = split($0, part, "\"")
        for (i = 1; i <= n; i++) {
            if (i % 2) gsub(/[ \t]+/, "\n", part[i])
            printf "%s", part[i]
        }
        print ""
    }'
}

# Print the kernel's word for the key of one; the last one counts.
word_like() {
    one_a_line <"$ROOT/proc/cmdline" | {
        key=${1%%=*} found=
        while IFS= read -r given; do
            case $given in
            --) break ;; # what follows is for init
            "$key" | "$key="*) found=$given ;;
            esac
        done
        printf '%s' "$found"
    }
}

# Print a word as it is to be written.
written() {
    case $1 in
    *' '*) printf '%s' "${1%%=*}=\"${1#*=}\"" ;;
    *) printf '%s' "$1" ;;
    esac
}

check_words() {
    missing=$(printf '%s\n' "$WORDS" | one_a_line | while IFS= read -r word; do
        [ "$(word_like "$word")" = "$word" ] || printf ' %s' "$(written "$word")"
    done)
    if [ "$missing" ]; then
        wrong words "the kernel's command line lacks$missing" \
            "append to it, in place of others that begin alike:$missing"
    else
        ok words "the kernel's command line has $WORDS"
    fi
}

check_crash_kernel() {
    word=$(word_like crashkernel) reserved=0
    [ -r "$ROOT/sys/kernel/kexec_crash_size" ] &&
        reserved=$(cat "$ROOT/sys/kernel/kexec_crash_size")
    if [ "$word" ] || [ "$reserved" != 0 ]; then
        wrong crash-kernel "there is ${word:-memory for a crash kernel}: Linux puts \
the crash kernel where the bounce pool should be" "take ${word:-crashkernel=} from the \
kernel's command line, and reboot (Debian: remove the package kdump-tools)"
    else
        ok crash-kernel "no memory is reserved for one"
    fi
}

MEMORY="take the memory arguments and the kernel's words of one and the same \
@ARGUMENTS@"

# The same arguments, of what the log does not have: it may have forgotten it.
not_logged() {
    if whole_log; then
        wrong "$@"
    else
        wrong "$1" "$NO_LOG" "$EARLIER"
    fi
}

check_pool() {
    mapped='software IO TLB: mapped \[mem \(0x[0-9a-f]*\)-\(0x[0-9a-f]*\)\]'
    found=$(log_lines "s/.*$mapped.*/\1 \2/p")
    if [ -z "$found" ]; then
        not_logged pool "the kernel has no bounce pool" "$MEMORY"
        return
    fi
    # shellcheck disable=SC2086  # two words, or more if there are several pools
    set -- $found
    if [ $# = 2 ] && [ $(($1)) = $((POOL_START)) ] && [ $(($2)) = $((POOL_END)) ]; then
        ok pool "the bounce pool is where it should be, $1-$2"
    else
        wrong pool "the bounce pool is at $*, and should be at $POOL_START-$POOL_END" \
            "$MEMORY"
    fi
}

check_rings() {
    found=$(log_lines 's/.*cma: Reserved \([0-9]*\) MiB at \(0x[0-9a-f]*\).*/\1 \2/p')
    if [ -z "$found" ]; then
        not_logged rings "the kernel reserved no memory for CMA" "$MEMORY; $KERNELS"
        return
    fi
    # shellcheck disable=SC2086
    set -- $found
    size=$((RINGS_END - RINGS_START))
    if [ $# = 2 ] && [ $(($1 << 20)) = $size ] && [ $(($2)) = $((RINGS_START)) ]; then
        ok rings "the only CMA area is the ring area, $1 MiB at $2"
    else
        wrong rings "CMA areas (MiB, address): $*; there should be one, of \
$((size >> 20)) MiB at $RINGS_START" "$MEMORY, and no other words for CMA"
    fi
}

# What has a place in physical memory, such as the kernel's code.
check_places() {
    inside=
    while IFS= read -r line; do
        range=${line%% : *} what=${line#* : }
        range=$(echo "$range" | tr -d ' ')
        start=$((0x${range%-*})) end=$((0x${range#*-}))
        [ "$end" -ge $((POOL_START)) ] && [ "$start" -lt $((RINGS_END)) ] || continue
        case $what in
        # arm64 has a line "reserved" for what is allocated early, as the pool is.
        'System RAM' | reserved) ;;
        *) inside="$inside, $what" ;;
        esac
    done <"$ROOT/proc/iomem"
    if ! grep -q 'Kernel code' "$ROOT/proc/iomem"; then
        wrong places "/proc/iomem does not say where the kernel is" "run this as root"
    elif [ "$inside" ]; then
        wrong places "in the shared region there is: ${inside#, }" \
            "$MEMORY (nokaslr is one of them)"
    else
        ok places "the kernel and its reservations are outside"
    fi
}

# The boot loader comes before Linux, and knows nothing of the region: what it put there
# may still be there.
check_initrd() {
    [ "$BIOS_INITRD" ] || return 0
    found=$(log_lines 's/.*RAMDISK: \[mem \(0x[0-9a-f]*\)-\(0x[0-9a-f]*\)\].*/\1 \2/p')
    if [ -z "$found" ]; then
        if whole_log; then
            ok initrd "there is none"
        else
            wrong initrd "$NO_LOG" "$EARLIER"
        fi
        return
    fi
    limit=$BIOS_INITRD firmware=BIOS
    [ -d "$ROOT/sys/firmware/efi" ] && limit=$EFI_INITRD firmware=EFI
    # shellcheck disable=SC2086
    set -- $found
    size=$((($2 - $1 >> 20) + 1))
    if [ $(($2)) -ge $((POOL_START)) ] && [ $(($1)) -lt $((RINGS_END)) ]; then
        where="it was loaded at $1-$2, in the shared region"
    elif [ $size -gt "$limit" ]; then
        where="it has $size MiB, and with $firmware only one of $limit MiB is certain \
not to be loaded into the shared region"
    else
        ok initrd "it has $size MiB, and $limit are possible with $firmware"
        return
    fi
    wrong initrd "$where" "make it smaller (Debian: MODULES=dep in \
/etc/initramfs-tools/initramfs.conf, update-initramfs -u), or give the VM more memory \
(from 1G, and from 8G on, more is possible); what was in it is known to the slave"
}

# Print how many pages of a range have which flags.  Arguments: first byte, end.
# It reads a MiB's flags at once: both ends are whole MiB.
flags_of() {
    dd if="$ROOT/proc/kpageflags" bs=$((8 * PAGES_OF_A_MIB)) skip=$(($1 >> 20)) \
        count=$((($2 - $1) >> 20)) 2>/dev/null | od -An -v -t x8 |
        awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (f in n) print n[f], f }'
}

# Print what a page with these flags is (linux/kernel-page-flags.h).
kind_of() {
    for pair in 7:slab 26:page-table 12:anonymous 17:huge-page 20:no-memory \
        23:offline 5:page-cache 11:mapped 32:reserved 10:free; do
        if [ $(($1 >> ${pair%%:*} & 1)) = 1 ]; then
            echo "${pair#*:}"
            return
        fi
    done
    echo "flags-$1"
}

# Print the pages of a range whose flags are none of those named, and count all in
# `counted`.  Arguments: first byte, end, flags.
others_in() {
    flags_of "$1" "$2" | {
        total=0
        while read -r count flags; do
            total=$((total + count))
            case " $3 " in
            *" $((0x$flags)) "*) ;;
            *) printf '%s %s, ' "$count" "$(kind_of $((0x$flags)))" ;;
            esac
        done
        [ $total = $((($2 - $1) / 4096)) ] || printf '%s pages seen, ' $total
    }
}

RESERVED=$((1 << 32)) FREE=$((1 << 10))

check_pages() {
    if [ ! -r "$ROOT/proc/kpageflags" ]; then
        wrong pages "/proc/kpageflags cannot be read" \
            "run this as root, with a kernel that has CONFIG_PROC_PAGE_MONITOR"
        return
    fi
    in_pool=$(others_in $((POOL_START)) $((POOL_END)) "$RESERVED")
    # The rings have no flags, and what is not in use is free.
    in_rings=$(others_in $((RINGS_START)) $((RINGS_END)) "0 $FREE")
    if [ "$in_pool" ]; then
        wrong pages "the bounce pool's pages: ${in_pool%, }" "$MEMORY"
    elif [ "$in_rings" ]; then
        wrong pages "in the ring area there is: ${in_rings%, }" "if the check of \
lending is wrong as well, do what it says, and reboot: the slave has seen these pages"
    else
        ok pages "all $(((RINGS_END - POOL_START) / 4096)) pages of the region are the \
pool's, the rings' or free"
    fi
}

# Print the ring area's zone: its name, its pages, and how many of them it keeps free of
# what may lie in the zones above it as well.
zone_of_rings() {
    awk -v at=$((RINGS_START / 4096)) '
        $1 == "Node" { name = $4; spanned = managed = kept = 0 }
        $1 == "spanned" { spanned = $2 }
        $1 == "managed" { managed = $2 }
        $1 == "protection:" {
            gsub(/[(),]/, " ")
            for (i = 2; i <= NF && !kept; i++) kept = $i
        }
        $1 == "start_pfn:" && $2 <= at && at < $2 + spanned {
            print name, managed, kept
        }
    ' "$ROOT/proc/zoneinfo"
}

# A zone that keeps all of its pages free lends none: not even when memory runs short.
check_lending() {
    # shellcheck disable=SC2046  # three words
    set -- $(zone_of_rings)
    if [ $# != 3 ]; then
        wrong lending "/proc/zoneinfo does not say which zone the ring area is in" \
            "run this as root; $MEMORY"
    elif [ "$3" -lt "$2" ]; then
        wrong lending "the kernel lends the ring area to programs when memory runs \
short, or is compacted: zone $1 keeps $3 of its $2 pages free of them" "see that \
nothing else sets vm.lowmem_reserve_ratio, as in /etc/sysctl.d, and $MEMORY"
    else
        ok lending "the kernel does not lend the ring area: zone $1 keeps $3 pages \
free of programs, and has $2"
    fi
}

# What frees memory may take any page, also of a zone that lends none: so pages of
# programs, compressed or as they are, may come into the ring area (seen).  A disk has no
# need of memory like theirs.
check_compression() {
    found='' places=0 zswap=
    if [ ! -r "$ROOT/proc/swaps" ]; then
        ok compression "the kernel is built without swap"
        return
    fi
    while read -r name kind _; do
        [ "$kind" != Type ] && places=$((places + 1))
        case $name in
        */zram[0-9]*) found="$found ${name##*/}" ;;
        esac
    done <"$ROOT/proc/swaps"
    [ -r "$ROOT/sys/module/zswap/parameters/enabled" ] &&
        zswap=$(cat "$ROOT/sys/module/zswap/parameters/enabled")
    [ "$zswap" = Y ] && [ $places != 0 ] && found="$found zswap"
    if [ "$found" ]; then
        wrong compression "the kernel keeps pages of programs compressed in memory, and \
when it runs short it may put them into the ring area:$found" "swapoff, and boot \
without: zswap.enabled=0 among the kernel's words, no package for zram (Debian: \
zram-tools, systemd-zram-generator); to swap to a disk is fine"
    else
        ok compression "no pages of programs are kept compressed (zram, zswap)"
    fi
}

check_init_on_alloc() {
    repair="append init_on_alloc=1 to the kernel's command line, and no page_poison="
    case $(log_lines 's/.*mem auto-init:.*heap alloc:\([a-z]*\).*/\1/p') in
    on) ok init-on-alloc "the kernel clears memory before it is used again" ;;
    off) wrong init-on-alloc "buffers for packets hold what others freed" "$repair" ;;
    *)
        if [ "$(word_like init_on_alloc)" = init_on_alloc=1 ]; then
            ok init-on-alloc "by the kernel's command line; its log says no more"
        else
            wrong init-on-alloc "$NO_LOG" "$repair"
        fi
        ;;
    esac
}

# Print the character of a virtio device's features for a bit: 1 if it is negotiated.
feature() {
    cut -c $(($2 + 1)) <"$1/features"
}

ACCESS_PLATFORM=33 CTRL_VQ=17

check_card() {
    card=
    for file in "$ROOT"/sys/bus/virtio/devices/*/net/*/address; do
        [ -r "$file" ] && [ "$(cat "$file")" = "$MAC" ] && card=${file%/net/*}
    done
    if [ -z "$card" ]; then
        wrong card "no virtio card has the MAC address $MAC" \
            "give the card's as an argument, if it is another: ip -br link"
        return
    fi
    if [ "$(feature "$card" $ACCESS_PLATFORM)" != 1 ]; then
        wrong card "the card (${card##*/}) bypasses the bounce pool" \
            "iommu_platform=on,disable-legacy=on in its -device"
    else
        ok card "${card##*/} uses the bounce pool"
    fi
    if [ "$(feature "$card" $CTRL_VQ)" = 1 ]; then
        wrong control-queue "the card has one: through it the slave could have QEMU \
write anywhere in this VM" "ctrl_vq=off in its -device, with ctrl_rx=off,ctrl_vlan=off,\
ctrl_rx_extra=off,ctrl_mac_addr=off,guest_announce=off,ctrl_guest_offloads=off"
    else
        ok control-queue "the card has none"
    fi
}

check_virtio() {
    others=
    for device in "$ROOT"/sys/bus/virtio/devices/*; do
        [ "$device" != "${card:-}" ] && [ -r "$device/features" ] || continue
        [ "$(feature "$device" $ACCESS_PLATFORM)" = 1 ] || continue
        others="$others ${device##*/}"
    done
    if [ "$others" ]; then
        wrong virtio "other devices put their rings into the region:$others" \
            "take iommu_platform=on away from them"
    else
        ok virtio "no other virtio device uses the DMA interface"
    fi
}

# Drivers that use no memory of the DMA interface: virtio-pci leaves that to the device
# (above), bochs-drm (QEMU's usual screen) writes into the device's own memory, and the
# others have only registers.
check_drivers() {
    others=
    for driver in "$ROOT"/sys/bus/pci/devices/*/driver; do
        [ -e "$driver" ] || continue
        name=$(readlink "$driver")
        case ${name##*/} in
        virtio-pci | pcieport | lpc_ich | i801_smbus | bochs-drm) ;;
        *)
            device=${driver%/driver}
            others="$others ${name##*/} (${device##*/})"
            ;;
        esac
    done
    if [ "$others" ]; then
        wrong drivers "other drivers may put rings and data into the region:$others" \
            "take these devices from the VM (AHCI of q35: -machine q35,sata=off)"
    else
        ok drivers "no other PCI driver is in use"
    fi
}

# Channel 4 is the cascade of the two controllers, and no device's.
check_isa() {
    used=
    [ -r "$ROOT/proc/dma" ] && used=$(sed '/^ *4: cascade/d; s/^ *//' "$ROOT/proc/dma")
    if [ "$used" ]; then
        wrong isa-dma "a device on the ISA bus uses DMA: $used" \
            "take it from the VM (a floppy drive, a parallel port, a sound card)"
    else
        ok isa-dma "no device on the ISA bus uses DMA"
    fi
}

check_iommu() {
    found=
    for one in "$ROOT"/sys/class/iommu/*; do
        [ -e "$one" ] && found="$found ${one##*/}"
    done
    if [ "$found" ]; then
        wrong iommu "the VM has an IOMMU, with which this was never tried:$found" \
            "take intel-iommu, amd-iommu or virtio-iommu from its QEMU's arguments"
    else
        ok iommu "the VM has none"
    fi
}

# kexec_file_load() puts what is small, such as the code that starts the next kernel, into
# a CMA area (seen with Linux 7.2).  Its pages look like those of the rings.
check_kexec() {
    loaded=
    [ -r "$ROOT/sys/kernel/kexec_loaded" ] && loaded=$(cat "$ROOT/sys/kernel/kexec_loaded")
    if [ "$loaded" = 1 ]; then
        wrong kexec "a kernel is loaded for kexec, parts of which may be in the ring \
area, where the slave can change them" "unload it (kexec -u), and reboot instead; sysctl \
kernel.kexec_load_disabled=1 keeps others from loading one"
    else
        ok kexec "no kernel is loaded"
    fi
}

if [ -z "$ROOT" ] && [ "$(id -u)" != 0 ]; then
    echo 'run this as root: /proc/iomem and /proc/kpageflags are root'\''s' >&2
    exit 1
fi
read_log
check_kernel
check_words
check_crash_kernel
check_pool
check_rings
check_places
check_initrd
check_pages
check_lending
check_compression
check_init_on_alloc
check_card
check_virtio
check_drivers
check_isa
check_iommu
check_kexec
echo
echo "$checks checks, $wrongs wrong.  This is how it is now: programs and devices come \
and go."
[ $wrongs = 0 ]
