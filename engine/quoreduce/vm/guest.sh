#!/bin/sh
# The first process of the guest, and its only program: answers commands on the serial console, one a line.
# It keeps a secret in its memory and on the disk, counts, and reads the vTPM, so that a test sees what a move keeps and loses.
#   SECRET x  -> STORED     kept in this shell and in the first block of /dev/vda
#   SHOW      -> HELD x     from memory
#   DISK      -> DISK x     from the disk, past the cache
#   TICK      -> tick N     a process counts 10 a second since boot
#   TICKS     -> (nothing)  from now on "tick N" appears once a second by itself
#   PCR       -> PCR10 hex  of the vTPM, SHA-256; "PCR10 none" without one
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
for module in /modules/*.ko; do
  [ -e "$module" ] && insmod "$module"
done

# Linux's IMA (ima_policy=tcb) measures what root reads: this extends PCR 10 by what no other boot has.
read -r boot </proc/sys/kernel/random/uuid
echo "$boot" >/boot-id
read -r boot </boot-id

count() {
  exec 3<>/run/never  # a wait that starts no process
  n=0
  while :; do
    read -r -t 0.1 _ <&3
    n=$((n + 1))
    echo $n 1<>/run/tick  # in place: whoever reads it meanwhile finds a number
    [ -e /run/ticks ] && [ $((n % 10)) = 0 ] && echo "tick $n"
  done
}

hold() {  # dd keeps the key in its buffer, which is in one page, and waits for more; the file goes
  mkfifo /run/key
  dd if=/run/key of=/dev/null ibs=4096 obs=1048576 2>/dev/null &
  exec 4>/run/key
  cat /key.der >&4
  rm /key.der
}

store() {
  [ -b /dev/vda ] && printf '%s\n' "$1" | dd of=/dev/vda bs=4096 conv=sync,fsync 2>/dev/null
}

stored() {
  blockdev --flushbufs /dev/vda
  dd if=/dev/vda bs=4096 count=1 2>/dev/null | head -n 1
}

mkfifo /run/never
echo 0 >/run/tick
count &
[ -e /key.der ] && hold
stty -echo -onlcr
secret=
echo GUEST-READY
while read -r command rest; do
  case $command in
    SECRET)
      secret=$rest
      if store "$secret"; then echo STORED; else echo "FAILED: the disk cannot be written"; fi
      ;;
    SHOW) echo "HELD $secret" ;;
    DISK) echo "DISK $(stored)" ;;
    TICK) read -r n </run/tick; echo "tick $n" ;;
    TICKS) : >/run/ticks ;;
    PCR)
      pcr=none
      read -r pcr </sys/class/tpm/tpm0/pcr-sha256/10
      echo "PCR10 $pcr"
      ;;
    *) echo "UNKNOWN $command" ;;
  esac
done 2>/dev/null
