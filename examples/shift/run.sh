#!/usr/bin/env bash
# The shift pages of examples/shift/params.yaml, or those named: bash examples/shift/run.sh parcels
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
tracks=("$@")
if [ ${#tracks[@]} = 0 ]; then tracks=(ct parcels shapes); fi
for name in "${tracks[@]}"; do
    if [ ! -e "data/prepared/$name" ]; then lacuna sample "$name"; lacuna ingest "$name"; fi
    if [ ! -e "artifacts/finetune/$name" ]; then lacuna finetune "$name"; fi
    lacuna shift "$name"
done
echo "pages: examples/shift/reports/shift/*/report.html"
