#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each worker of a TPU, in its home folder:
#   crosr_jax_source/  the project        crosr_jax_env/  Python and packages
#   crosr_jax_run/     log, pid and exit code of the run
set -euo pipefail

# What https://astral.sh/uv has; it brings a Python where the machine's is older
# than the project needs.
readonly UV_VERSION=0.13.9 PYTHON=3.12
readonly STAMP=crosr_jax_source/.installed RUN=crosr_jax_run
readonly SECONDS_TO_SAVE=120

cd
main() {
  local command=$1
  shift
  case $command in
    installed) grep -qx "$1" "$STAMP" 2>/dev/null ;;
    install) install "$@" ;;
    start) start "$@" ;;
    stop) stop ;;
    alive) alive ;;
    state) echo "$(uname -n) $(state)" ;;
    status) status ;;
    *)
      echo "tpu_worker.sh: no command $command" >&2
      exit 2
      ;;
  esac
}

# Packages of the commit that lies in crosr_jax_source.
install() {
  local uv=.local/bin/uv
  if [[ ! -x $uv ]]; then
    curl --fail --silent --show-error --location \
      "https://astral.sh/uv/$UV_VERSION/install.sh" |
      env UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh
  fi
  if [[ ! -x crosr_jax_env/bin/python ]]; then
    "$uv" venv --quiet --python "$PYTHON" crosr_jax_env
  fi
  "$uv" pip install --quiet --python crosr_jax_env/bin/python \
    --editable './crosr_jax_source[tpu,gcs]'
  echo "$1" >"$STAMP"
}

# Starts a command that outlives the connection, in place of any before.
start() {
  stop
  mkdir -p "$RUN"
  rm -f "$RUN/code"
  echo "== $(date -u '+%F %T') $*" >>"$RUN/log"
  # A session of its own, whose leader's first argument tells it from others.
  # The leader is there until the command has ended; what bash says of that is
  # no line of the log.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'trap : TERM
    exec 3>&2 2>/dev/null
    "$@" 2>&3 3>&-
    echo $? >"$0/code"' "$RUN" "$@" >>"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/pid"
}

# A training saves first, and what it saved goes up.
stop() {
  alive || return 0
  local pid
  pid=$(<"$RUN/pid")
  kill -TERM -- "-$pid" 2>/dev/null || true
  for _ in $(seq $((5 * SECONDS_TO_SAVE))); do
    alive || return 0
    sleep 0.2
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
}

alive() {
  local pid
  pid=$(cat "$RUN/pid" 2>/dev/null) || return 1
  # After a reboot the number may be another's.
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q " $RUN "
}

# running | done | failed CODE | stopped (asked to, killed, or rebooted) | none
state() {
  if alive; then
    echo running
  elif [[ -s $RUN/code ]]; then
    local code
    code=$(<"$RUN/code")
    case $code in
      0) echo 'done' ;;
      143) echo stopped ;;
      *) echo "failed $code" ;;
    esac
  elif [[ -e $RUN/pid ]]; then
    echo stopped
  else
    echo none
  fi
}

status() {
  local last=''
  [[ -e $RUN/log ]] && last=$(tail -n 1 "$RUN/log" | cut -c 1-200)
  echo "$(uname -n): $(state)${last:+; $last}"
}

main "$@"
