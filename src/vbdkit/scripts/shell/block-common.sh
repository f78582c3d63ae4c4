# shellcheck shell=dash
# What a block script in shell builds on (protocol clauses C2, S1-S4), for any sh that has `local`: bash, dash, busybox,
# mksh, the BSDs' sh. `vbdkit install` writes it, with three settings in front, to the folder of Xen's hotplug scripts:
#
#   dir=$(dirname "$0")
#   . "$dir/block-common.sh"
#   case $command in
#     add)    write_dev "$(make_a_device "$(xenstore_read "$XENBUS_PATH/params")")" ;;
#     remove) take_it_back ;;
#   esac
#
# The names and what they mean are those that scripts in the field use. Behind them stands one helper process per
# script (scripts/helper.py), so that no program is started per call. Names that begin with _vbdkit are for us.

set -e

# ---- The conversation with the helper --------------------------------------------------------------------------------

# Ask; the answer is in $_vbdkit_answer. Not 0: a failure, which has been told already.
_vbdkit_ask() {
  local line count status
  _vbdkit_answer=
  if ! _vbdkit_lives "$_vbdkit_helper"; then
    echo "$0: the helper process of vbdkit is gone" >&2
    return 1
  fi
  IFS= read -r line <"$_vbdkit_pipes/turn" || return 1
  printf '%s\0' "$#" "$@" >"$_vbdkit_pipes/ask"
  {
    IFS=' ' read -r status count || return 1
    if [ "$count" -gt 0 ]; then
      IFS= read -r _vbdkit_answer || return 1
      while [ "$count" -gt 1 ]; do
        IFS= read -r line || return 1
        _vbdkit_answer=$_vbdkit_answer'
'$line
        count=$((count - 1))
      done
    fi
  } <"$_vbdkit_pipes/answer"
  echo >"$_vbdkit_pipes/turn"
  return "$status"
}

# Whether a process lives. One that has ended may be there still, until its parent looks; it has no program then.
_vbdkit_lives() {
  if [ -e /proc/self/exe ]; then
    [ -e "/proc/$1/exe" ]
  else
    kill -0 "$1" 2>/dev/null
  fi
}

# Whether the process that says that it waits lives, and is that process: by the time at which it began.
_vbdkit_waits() {
  local began line
  {
    IFS=' ' read -r _vbdkit_helper began <"$_vbdkit_pipes/pid" || return 1
    IFS= read -r line <"/proc/$_vbdkit_helper/stat" || return 1
  } 2>/dev/null
  _vbdkit_lives "$_vbdkit_helper" || return 1
  # shellcheck disable=SC2086  # numbers
  set -- ${line##*) }
  [ "${20}" = "$began" ]
}

# ---- How a script ends -----------------------------------------------------------------------------------------------

# The reason goes to hotplug-error, the log and the toolstack; a script that ends otherwise is told by its tools' words.
fatal() {
  _vbdkit_ask fatal "$*" || :
  exit 1
}

# The same where somebody else has the device: hotplug-status is busy.
ebusy() {
  _vbdkit_ask ebusy "$*" || :
  exit 1
}

success() {
  _vbdkit_ask success || exit 1
}

do_or_die() {
  "$@" || _vbdkit_failed "$*" "$?"
}

do_without_error() {
  "$@" 2>/dev/null || log debug "$* failed"
}

# What bash calls when a command fails that nothing tests.
sigerr() {
  # shellcheck disable=SC3028
  _vbdkit_failed "${BASH_COMMAND:-$0}" "$?"
}

_vbdkit_failed() {
  _vbdkit_ask failed "$1" "$2" || :
  exit 1
}

_vbdkit_exit() {
  set +e
  trap - EXIT
  _vbdkit_ask exit "$1" || :
}

# log LEVEL TEXT...
log() {
  local level="$1"
  shift
  _vbdkit_ask log "$level" "$*" || :
}

# ---- xenstore --------------------------------------------------------------------------------------------------------

# xenstore_read PATH...: the values, a line each; the script ends where one is missing or empty.
xenstore_read() {
  _vbdkit_ask read "$@" || exit 1
  printf '%s\n' "$_vbdkit_answer"
}

# xenstore_read_default PATH DEFAULT
xenstore_read_default() {
  _vbdkit_ask default "$1" "${2-}" || exit 1
  printf '%s\n' "$_vbdkit_answer"
}

# xenstore_write (PATH VALUE)...: all or nothing.
xenstore_write() {
  _vbdkit_ask write "$@" || exit 1
}

_xenstore_write() {
  _vbdkit_ask write "$@"
}

# ---- The disk --------------------------------------------------------------------------------------------------------

# write_dev DEVICE: sees that nobody else has it, and gives it to the guest.
write_dev() {
  _vbdkit_ask write_dev "${1-}" || exit 1
}

# device_major_minor DEVICE: its numbers in hexadecimal, with a colon between.
device_major_minor() {
  _vbdkit_ask number "$1" || exit 1
  [ -n "$_vbdkit_answer" ] || return 1
  printf '%s\n' "$_vbdkit_answer"
}

# canonicalise_mode MODE: r, w, or ! for a writer that is not checked.
canonicalise_mode() {
  case $1 in
    *w*!* | *!*w*) echo '!' ;;
    *w*) echo w ;;
    *) echo r ;;
  esac
}

# same_vm DOMID: whether that domain is the same VM as $FRONTEND_ID, or as this disk's guest.
same_vm() {
  local frontend=${XENBUS_PATH%/*}
  _vbdkit_ask same_vm "${FRONTEND_ID:-${frontend##*/}}" "$1" || exit 1
  [ "$_vbdkit_answer" = yes ]
}

# check_sharing device DEVICE MODE, check_sharing file DEV MODE INODE (the numbers as stat -c %D and %i print them):
# prints ok, or local or guest and the number of the device that is in use.
check_sharing() {
  _vbdkit_ask sharing "$@" || exit 1
  printf '%s\n' "$_vbdkit_answer"
}

# check_device_sharing DEVICE MODE: the script ends where somebody else has it.
check_device_sharing() {
  [ "$(canonicalise_mode "$2")" = '!' ] || _vbdkit_check "$1" "$2"
}

# check_file_sharing FILE DEV MODE INODE: the same; what counts is FILE.
check_file_sharing() {
  _vbdkit_check "$1" "$3"
}

_vbdkit_check() {
  _vbdkit_ask sentence "$1" "$2" || exit 1
  [ -z "$_vbdkit_answer" ] || ebusy "$_vbdkit_answer"
}

# do_ebusy PREFIX MODE guest|local: for scripts with a check_sharing of their own.
do_ebusy() {
  local who='this domain' how=''
  [ "$3" != guest ] || who='another guest'
  [ "$2" = w ] || how=' read-write'
  release_lock block
  ebusy "$1in use by $who$how, so this guest may not have it"
}

# ---- Locks -----------------------------------------------------------------------------------------------------------

# Kept by the helper: no program that the script starts inherits one, and they end with the script, however that ends.
claim_lock() {
  _vbdkit_ask lock "$1" || exit 1
}

release_lock() {
  _vbdkit_ask unlock "$1" || exit 1
}

# Scripts close this descriptor before they start a daemon. There is nothing behind it.
# shellcheck disable=SC2034
_lockfd=200

# ---- Odds and ends ---------------------------------------------------------------------------------------------------

# findCommand ARGUMENTS...: sets $command to the first one without "="; a backend path in front (FreeBSD, NetBSD) is none.
findCommand() {
  local arg
  command=
  for arg; do
    case $arg in
      /local/domain/*) ;;
      *=*) ;;
      *)
        command=$arg
        return
        ;;
    esac
  done
}

# evalVariables ARGUMENTS...: sets the variables of those with "=".
evalVariables() {
  local arg
  for arg; do
    case $arg in
      ?*=*) eval "$arg" ;;
    esac
  done
}

# call_hooks TYPE HOOK: sources the executable *.hook files in TYPE-HOOK.d beside the scripts.
call_hooks() {
  local hook
  for hook in "$XEN_SCRIPT_DIR/$1-$2.d"/*.hook; do
    if [ -x "$hook" ]; then
      # shellcheck source=/dev/null
      . "$hook"
    fi
  done
}

# expand_dev NAME: a name without a slash in front stands in /dev.
expand_dev() {
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '/dev/%s' "$1" ;;
  esac
}

# The first loop device that is bound to nothing.
find_free_loopback_dev() {
  local disk
  losetup -f 2>/dev/null && return
  for disk in /sys/block/loop[0-9]*; do
    if [ -e "$disk" ] && ! [ -e "$disk/loop" ]; then
      echo "/dev/${disk##*/}"
      return
    fi
  done
}

# ---- What happens when a script sources this -------------------------------------------------------------------------

case $0 in
  */*) dir=${0%/*} ;;
  *) dir=. ;;
esac
dir=${dir:-/}

bindir=/usr/bin sbindir=/usr/sbin LIBEXEC_BIN=/usr/lib/xen/bin
XEN_CONFIG_DIR=/etc/xen XEN_LOG_DIR=/var/log/xen XEN_RUN_DIR=/var/run/xen XEN_LOCK_DIR=/var/lock
# Where this host's Xen has its folders, if it says so.
# shellcheck source=/dev/null
if [ -r "$dir/hotplugpath.sh" ]; then . "$dir/hotplugpath.sh"; fi
XEN_SCRIPT_DIR=${_vbdkit_folder:-$dir}
export XEN_SCRIPT_DIR XEN_CONFIG_DIR XEN_LOG_DIR XEN_RUN_DIR XEN_LOCK_DIR

export PATH="$bindir:$sbindir:$LIBEXEC_BIN:/sbin:/bin:/usr/bin:/usr/sbin:$PATH"
if [ -n "${libdir:-}" ]; then export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libdir"; fi
unset LC_ALL LC_ADDRESS LC_COLLATE LC_CTYPE LC_IDENTIFICATION LC_MEASUREMENT LC_MESSAGES LC_MONETARY LC_NAME LC_NUMERIC \
  LC_PAPER LC_TELEPHONE LC_TIME
export LANG=POSIX

findCommand "$@"
case ${1-} in
  /local/domain/*)
    # FreeBSD and NetBSD; the latter gives xenbus states (C4, C5).
    export XENBUS_PATH="$1"
    case $command in
      2) command=add ;;
      6) command=remove ;;
    esac
    ;;
esac
case $command in
  add | remove) ;;
  *)
    echo "$0: asked to do ${command:-nothing}; a toolstack asks for add or remove" >&2
    exit 1
    ;;
esac
if [ -z "${XENBUS_PATH:-}" ]; then
  echo "$0: XENBUS_PATH is not set; a toolstack calls: XENBUS_PATH=backend/vbd/DOMID/DEVID $0 $command" >&2
  exit 1
fi
_vbdkit_kind=${XENBUS_PATH%/*/*}
export XENBUS_TYPE="${XENBUS_TYPE:-${_vbdkit_kind##*/}}" XENBUS_BASE_PATH="${XENBUS_BASE_PATH:-${_vbdkit_kind%/*}}"

# The helper that waits forks one for this script; else a new one is started.
_vbdkit_answer=
# shellcheck disable=SC2154  # the settings in front
_vbdkit_pipes=$_vbdkit_run/.sh
if [ -p "$_vbdkit_pipes/turn" ] && _vbdkit_waits; then
  # shellcheck disable=SC2154
  _vbdkit_ask start "$$" "$command" "$0" "$XENBUS_PATH" "$XEN_LOG_DIR" "$_vbdkit_start" || _vbdkit_answer=
fi
_vbdkit_helper=${_vbdkit_answer:-$(
  # shellcheck disable=SC2154
  "$_vbdkit_python" -IS -c "$_vbdkit_start" "$$" "$command" "$0" "$XENBUS_PATH" "$XEN_LOG_DIR"
)} || exit 1
_vbdkit_pipes=${_vbdkit_helper#* }
_vbdkit_helper=${_vbdkit_helper%% *}
exec 2>"$_vbdkit_pipes/err"
trap '_vbdkit_exit "$?"' EXIT
if [ -n "${BASH_VERSION:-}" ]; then
  # shellcheck disable=SC3047
  trap sigerr ERR
fi

# What another disk has by this script for the same target stays, where this one never got it: most scripts would take
# it from the guest that uses it.
if [ "$command" = remove ]; then
  _vbdkit_ask spare || exit 1
  if [ -n "$_vbdkit_answer" ]; then exit 0; fi
fi
