#!/usr/bin/env bash
# The shift pages of examples/shift/params.yaml, or those named: bash examples/shift/run.sh parcels
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
tracks=("$@")
source=${LACUNA_SHARED:-../../../shared}/data
if [ -f "$source/cxr/labels.csv" ]; then ln -sfn "$(cd "$source" && pwd)" source; fi
if [ ${#tracks[@]} = 0 ]; then
    tracks=(ct parcels shapes)
    if [ -e source ]; then tracks+=(films); fi
fi
for name in "${tracks[@]}"; do
    if [ ! -e "data/prepared/$name" ]; then
        if [ "$name" != films ]; then lacuna sample "$name"; fi
        lacuna ingest "$name"
    fi
    if [ ! -e "artifacts/finetune/$name" ]; then lacuna finetune "$name"; fi
    lacuna shift "$name"
done
echo "pages: examples/shift/reports/shift/*/report.html"
