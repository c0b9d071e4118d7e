#!/usr/bin/env bash
# A Cloud TPU from the queue to the report; the text of --help is below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU VM: asks for the TPU, installs, runs, fetches, deletes.

  launch/tpu_vm.sh [FLAGS] COMMAND [-- FLAGS of crosr_jax.main]

Commands; each looks first at what is there, so that it can be given again:
  create   asks for the TPU and waits until it is there; one that was preempted
           or has failed is deleted and asked for again
  install  copies the commit that is checked out to all workers, and installs it
  run      starts the training on all workers, and returns; given again, it goes
           on from the newest checkpoint
  status   says how the TPU and every worker are
  stop     ends the run on all workers; the TPU stays
  fetch    copies the results here; of a bucket without the checkpoints
  delete   deletes the TPU: until then it costs, whether it computes or not
  all      create to delete, and from create again where the TPU was preempted
           or a worker died; where the run fails, the TPU stays

Flags, written --flag=VALUE; or the variable:
  --project      LAUNCH_PROJECT      of Google Cloud; default: as gcloud has it
  --zone         LAUNCH_ZONE         for example us-central1-a
  --name         LAUNCH_NAME         of the TPU; default crosr-jax
  --accelerator  LAUNCH_ACCELERATOR  for example v5litepod-8, v6e-8, v4-8
  --runtime      LAUNCH_RUNTIME      its software; default: what suits the above
  --spot         LAUNCH_SPOT=yes     cheaper, and may be taken away at any time
  --config       LAUNCH_CONFIG       for example configs/cifar10.py:paper
  --workdir      LAUNCH_WORKDIR      gs://BUCKET/runs/NAME, or a folder of its
                                     own disk where the TPU is one host
  --data_dir     LAUNCH_DATA_DIR     of prepared data sets, gs://BUCKET/data or
                                     a folder; default: prepared on each worker
  --output       LAUNCH_OUTPUT       where fetch puts results; default fetched
  --restarts     LAUNCH_RESTARTS     how often `all` starts again; default 10
  --poll         LAUNCH_POLL         seconds between two looks; default 30
  --dry-run      prints the commands, as if nothing were there, and runs none
  --help

  launch/tpu_vm.sh --zone=us-central1-a --accelerator=v5litepod-8 --spot \
    --config=configs/cifar10.py:paper --workdir=gs://BUCKET/runs/cifar10 all
TEXT
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
SELF=$ROOT/launch/$(basename "${BASH_SOURCE[0]}")
readonly SELF
readonly WORKER=crosr_jax_source/launch/tpu_worker.sh
# Looks in a row without an answer: ten minutes, a reboot takes less.
readonly MOST_SILENT=20

project=${LAUNCH_PROJECT:-} zone=${LAUNCH_ZONE:-} name=${LAUNCH_NAME:-crosr-jax}
accelerator=${LAUNCH_ACCELERATOR:-} runtime=${LAUNCH_RUNTIME:-}
spot=${LAUNCH_SPOT:-} config=${LAUNCH_CONFIG:-} workdir=${LAUNCH_WORKDIR:-}
data_dir=${LAUNCH_DATA_DIR:-} output=${LAUNCH_OUTPUT:-fetched}
restarts=${LAUNCH_RESTARTS:-10} poll=${LAUNCH_POLL:-30}
dry_run='' command='' more=()

main() {
  parse "$@"
  check
  case $command in
    create) create ;;
    install) install ;;
    run) start ;;
    status) status ;;
    stop) stop ;;
    fetch) fetch ;;
    delete) delete ;;
    all) all ;;
  esac
}

say() { echo "tpu_vm: $*" >&2; }

# A mistake in what was asked for.
usage_error() {
  say "error: $*"
  exit 2
}

fail() {
  say "error: $*"
  exit 1
}

parse() {
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --dry-run) dry_run=yes ;;
      --spot) spot=yes ;;
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --name=*) name=${1#*=} ;;
      --accelerator=*) accelerator=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --config=*) config=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --data_dir=*) data_dir=${1#*=} ;;
      --output=*) output=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --)
        shift
        more=("$@")
        break
        ;;
      -*) usage_error "no flag $1; they are written --flag=VALUE, see --help" ;;
      *)
        [[ -z $command ]] || usage_error "two commands, $command and $1"
        command=$1
        ;;
    esac
    shift
  done
  workdir=${workdir%/}
}

check() {
  case $command in
    create | install | run | status | stop | fetch | delete | all) ;;
    '') usage_error 'a command is needed: create, install, run, status, stop,' \
      'fetch, delete or all; see --help' ;;
    *) usage_error "no command $command; there are create, install, run," \
      'status, stop, fetch, delete and all' ;;
  esac
  [[ -n $zone ]] ||
    usage_error '--zone is needed, for example --zone=us-central1-a'
  [[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    usage_error "--name=$name: lower-case letters, digits and -, at most 63"
  [[ $restarts =~ ^[0-9]+$ ]] || usage_error "--restarts=$restarts is no number"
  [[ $poll =~ ^[0-9]+$ ]] || usage_error "--poll=$poll is no number of seconds"
  case $spot in
    '' | yes) ;;
    *) usage_error "LAUNCH_SPOT=$spot: yes, or leave it out" ;;
  esac
  case $command in create | all) check_accelerator ;; esac
  case $command in
    run | all) check_run ;;
    fetch) check_workdir ;;
  esac
  if [[ -z $dry_run ]] && ! command -v gcloud >/dev/null; then
    fail 'gcloud is not there; install it from https://cloud.google.com/sdk'
  fi
}

check_accelerator() {
  [[ -n $accelerator ]] ||
    usage_error '--accelerator is needed, for example --accelerator=v5litepod-8'
  [[ -z $runtime ]] || return 0
  case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) usage_error "--accelerator=$accelerator: say --runtime too, see" \
      'https://cloud.google.com/tpu/docs/runtimes' ;;
  esac
}

check_run() {
  [[ -n $config ]] ||
    usage_error '--config is needed, for example --config=configs/cifar10.py'
  check_workdir
  git -C "$ROOT" cat-file -e "HEAD:./${config%%:*}" 2>/dev/null ||
    usage_error "--config=$config: no file of this commit; it is looked for" \
      'in the folder of the project, and has to be committed to be copied'
}

check_workdir() {
  [[ -n $workdir ]] ||
    usage_error '--workdir is needed, for example gs://BUCKET/runs/NAME'
  case $workdir in
    gs://*/*) ;;
    *://*) usage_error "--workdir=$workdir: gs://BUCKET/FOLDER or a folder" ;;
  esac
}

# Words, as a shell reads them back.
quote() {
  local word out=''
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        out+=" '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
        ;;
      *) out+=" $word" ;;
    esac
  done
  echo "${out# }"
}

# Runs a command, or says it.
execute() {
  if [[ -n $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# gcloud compute tpus queued-resources VERB NAME ...
tpu() {
  local verb=$1
  shift
  local place=("--zone=$zone")
  [[ -z $project ]] || place+=("--project=$project")
  execute gcloud compute tpus queued-resources "$verb" "$@" "${place[@]}"
}

# Sets `state` to what the queue says, NONE where it knows of no such TPU.
look() {
  try_to_look || fail "gcloud cannot say whether $name is there"
}

# The same; false, and `state` as it was, where there is no answer.
try_to_look() {
  local answer errors words=(describe "$name" '--format=value(state.state)')
  if [[ -n $dry_run ]]; then
    state=NONE
    tpu "${words[@]}"
    return
  fi
  errors=$(mktemp)
  if answer=$(tpu "${words[@]}" 2>"$errors"); then
    state=${answer:-UNKNOWN}
  elif grep -q NOT_FOUND "$errors"; then
    state=NONE
  else
    cat "$errors" >&2
    rm -f "$errors"
    return 1
  fi
  rm -f "$errors"
}

# Waits, then looks. What takes hours must not end where a network fails once.
look_again() {
  sleep "$poll"
  try_to_look || say 'no answer; looking again'
}

# A command line on every worker. Where a node is stopped, or about to go,
# gcloud reaches none and takes that for success: so each has to say a word.
on_workers() {
  local answer code=0
  local words=(ssh "$name" --worker=all "--command=echo reached; $1")
  if [[ -n $dry_run ]]; then
    tpu "${words[@]}"
    return
  fi
  answer=$(tpu "${words[@]}") || code=$?
  printf %s "$answer" | grep -vx reached || true
  ((code)) || [[ $answer = *reached* ]] || fail "no worker of $name was reached"
  return "$code"
}

# Whether each worker's answer ends with a word. Where one does not answer at
# all, that is an error, and what gcloud asks or says is seen.
every_worker() {
  local word=$1 answer
  answer=$(on_workers "$2") || fail "not all workers of $name answer"
  [[ -n $answer ]] && ! grep -qv "$word\$" <<<"$answer"
}

need_active() {
  look
  [[ -n $dry_run || $state = ACTIVE ]] ||
    fail "$name is $state, not ACTIVE; launch/tpu_vm.sh create brings it"
}

create() {
  look
  case $state in
    SUSPENDED | FAILED)
      say "$name is $state; it is deleted and asked for again"
      tpu delete "$name" --force --quiet
      state=NONE
      ;;
    SUSPENDING | DELETING)
      while [[ $state = SUSPENDING || $state = DELETING ]]; do
        say "$name is $state"
        look_again
      done
      create
      return
      ;;
  esac
  if [[ $state = NONE ]]; then
    local kind=()
    [[ -z $spot ]] || kind=(--spot)
    tpu create "$name" "--node-id=$name" "--accelerator-type=$accelerator" \
      "--runtime-version=$runtime" ${kind[@]+"${kind[@]}"}
    [[ -z $dry_run ]] || return 0
    look
  fi
  while [[ $state != ACTIVE ]]; do
    case $state in
      SUSPENDED | FAILED | NONE)
        fail "$name is $state; gcloud compute tpus queued-resources describe" \
          "$name --zone=$zone says why"
        ;;
    esac
    say "$name is $state"
    look_again
  done
  say "$name is there; it costs until launch/tpu_vm.sh delete"
}

install() {
  local commit archive
  commit=$(git -C "$ROOT" rev-parse HEAD 2>/dev/null) ||
    fail "$ROOT is no git checkout, and what is copied is a commit"
  git -C "$ROOT" diff --quiet HEAD ||
    say 'what is not committed is not copied'
  need_active
  if [[ -z $dry_run ]] && every_worker installed "bash $WORKER installed \
$commit 2>/dev/null && echo installed || echo missing"; then
    say "${commit:0:12} is installed"
    return
  fi
  archive=${TMPDIR:-/tmp}/crosr_jax-$commit.tar.gz
  execute git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD
  tpu scp "$archive" "$name:crosr_jax.tar.gz" --worker=all
  on_workers "if bash $WORKER alive 2>/dev/null; then \
echo 'a run goes on; stop it, or let it end' >&2; exit 1; fi; \
rm -rf crosr_jax_source && mkdir crosr_jax_source && \
tar -xzf crosr_jax.tar.gz -C crosr_jax_source && rm crosr_jax.tar.gz && \
bash $WORKER install $commit"
  execute rm -f "$archive"
}

start() {
  need_active
  check_hosts
  if [[ -z $dry_run ]] && every_worker running "bash $WORKER state"; then
    say 'the run goes on; launch/tpu_vm.sh status looks at it'
    return
  fi
  local words=(
    crosr_jax_env/bin/python -m crosr_jax.main
    "--config=crosr_jax_source/$config" "--workdir=$workdir" --distributed=on
  )
  [[ -z $data_dir ]] || words+=("--data_dir=$data_dir")
  on_workers "bash $WORKER start $(quote "${words[@]}" ${more[@]+"${more[@]}"})"
}

# Several hosts have no disk in common.
check_hosts() {
  case $workdir in gs://*) return 0 ;; esac
  local hosts place=("--zone=$zone")
  [[ -z $project ]] || place+=("--project=$project")
  hosts=$(execute gcloud compute tpus tpu-vm describe "$name" \
    '--format=value(networkEndpoints.len())' "${place[@]}")
  if [[ -n $dry_run ]]; then
    echo "$hosts"
  elif [[ $hosts != 1 ]]; then
    usage_error "--workdir=$workdir: $name has $hosts hosts, which share no" \
      'disk; take gs://BUCKET/FOLDER'
  fi
}

status() {
  look
  if [[ -z $dry_run ]]; then
    echo "$name: $state"
    [[ $state = ACTIVE ]] || return 0
  fi
  on_workers "bash $WORKER status"
}

stop() {
  need_active
  on_workers "bash $WORKER stop"
}

fetch() {
  local target=$output/${workdir##*/}
  execute mkdir -p "$target"
  case $workdir in
    gs://*)
      execute gcloud storage rsync "$workdir" "$target" --recursive \
        '--exclude=^(.*/)?(checkpoints|digests|damaged)/'
      ;;
    *)
      need_active
      local before
      before=$(mktemp)
      tpu scp "$name:$workdir" "$output/" --worker=0 --recurse
      # It too takes nothing for success, and `all` then deletes the TPU.
      [[ -n $dry_run || -n $(find "$target" -type f -newer "$before") ]] ||
        fail "nothing came of $workdir from $name"
      rm -f "$before"
      ;;
  esac
  [[ -n $dry_run ]] || say "results are in $target"
}

delete() {
  look
  if [[ -z $dry_run && $state = NONE ]]; then
    say "there is no $name"
    return
  fi
  tpu delete "$name" --force --quiet
}

# Sets `outcome`: done, failed CODE, or what else has ended the run.
watch_run() {
  local states silent=0
  look
  while :; do
    if [[ $state != ACTIVE ]]; then
      outcome="$name is $state"
      return
    fi
    # No answer is no news: a worker may be rebooting. But not for ever.
    states=$(on_workers "bash $WORKER state" 2>/dev/null) || states=''
    silent=$((silent + 1))
    [[ -z $states ]] || silent=0
    ((silent < MOST_SILENT)) ||
      fail "no worker of $name has answered $silent times in a row, though it" \
        'is ACTIVE; it costs until launch/tpu_vm.sh delete'
    case $states in
      *failed* | *stopped*)
        # Others fail because one did; a mistake is the first cause.
        outcome=$(grep 'failed 2$' <<<"$states" ||
          grep -E 'failed|stopped' <<<"$states")
        outcome=${outcome%%$'\n'*}
        return
        ;;
      *running* | *none* | '') ;;
      *done*)
        outcome='done'
        return
        ;;
    esac
    look_again
  done
}

# A command of this script, by itself.
step() {
  bash "$SELF" ${dry_run:+--dry-run} "$@"
}

# create, install and run, then `watch_run`; sets `outcome`.
attempt() {
  step create || exit $?
  if step install && step run -- ${more[@]+"${more[@]}"}; then
    [[ -n $dry_run ]] || watch_run
    return
  fi
  look
  [[ $state != ACTIVE ]] || fail "$name costs until launch/tpu_vm.sh delete"
  outcome="$name is $state"
}

all() {
  local left=$restarts outcome=''
  export LAUNCH_PROJECT=$project LAUNCH_ZONE=$zone LAUNCH_NAME=$name \
    LAUNCH_ACCELERATOR=$accelerator LAUNCH_RUNTIME=$runtime LAUNCH_SPOT=$spot \
    LAUNCH_CONFIG=$config LAUNCH_WORKDIR=$workdir LAUNCH_DATA_DIR=$data_dir \
    LAUNCH_OUTPUT=$output LAUNCH_POLL=$poll
  while :; do
    attempt
    [[ -z $dry_run && $outcome != 'done' ]] || break
    say "$outcome"
    if [[ $outcome = *'failed 2' ]]; then
      step status
      say 'error: a mistake, which trying again does not mend;' \
        "$name costs until launch/tpu_vm.sh delete"
      exit 2
    elif ((left == 0)); then
      step status
      fail "given up after $restarts restarts; $name costs until" \
        'launch/tpu_vm.sh delete'
    fi
    left=$((left - 1))
    say "starting again; $left restarts are left"
  done
  step fetch
  step delete
}

main "$@"
