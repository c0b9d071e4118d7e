#!/usr/bin/env bash
# Fills in the ${VARIABLES} of a manifest from the environment:
#   launch/render.sh launch/gke_jobset_tpu.yaml | kubectl apply -f -
# One without a value is an error; kubectl would take the empty word.
set -euo pipefail

if [[ $# != 1 || ! -f $1 ]]; then
  echo 'render.sh: error: give it one manifest, for example' \
    'launch/gke_jobset_tpu.yaml' >&2
  exit 2
fi
text=$(grep -v '^#' "$1")
missing=''
# shellcheck disable=SC2016
for name in $(grep -o '\${[A-Z_]*}' <<<"$text" | tr -d '${}' | sort -u); do
  value=${!name:-}
  if [[ -z $value ]]; then
    missing+=" $name"
  elif [[ ! $value =~ ^[A-Za-z0-9._/:@-]+$ ]]; then
    echo "render.sh: error: $name=$value: letters, digits and . _ / : @ -" >&2
    exit 2
  fi
  text=${text//"\${$name}"/"$value"}
done
if [[ -n $missing ]]; then
  echo "render.sh: error: export$missing; the top of $1 says what they are" >&2
  exit 2
fi
printf '%s\n' "$text"
