#!/usr/bin/env bash
# Masks: nodules of the embedded CT sample, then real nodules and water where the real files are: bash examples/segmentation/run.sh,
# or those named: bash examples/segmentation/run.sh water. LACUNA_SHARED names the folder that holds data/ with ct and
# multispectral. Finished stages are not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
data=${LACUNA_SHARED:-../../../shared}/data
names=("$@")
[ ${#names[@]} != 0 ] || names=(ct lidc water)
stage() {   # stage NAME MARKER-OF-A-FINISHED-STAGE
    if [ -e "$3" ]; then echo "$1 $2: done before"; else lacuna "$1" "$2"; fi
}
for name in "${names[@]}"; do
    if [ "$name" = ct ]; then
        stage sample ct data/raw/ct/labels.csv
    elif [ -f "$data/ct/labels.csv" ]; then
        ln -sfn "$(cd "$data" && pwd)" source
    else
        echo "$name: left out: found no $data/ct/labels.csv. Set LACUNA_SHARED to the folder that holds data/."
        continue
    fi
    stage ingest "$name" "data/prepared/$name/index.parquet"
    stage pretrain "$name" "artifacts/pretrain/$name/checkpoint.json"
    stage finetune "$name" "artifacts/finetune/$name/summary.json"
    stage evaluate "$name" "reports/evaluate/$name/metrics.json"
done
