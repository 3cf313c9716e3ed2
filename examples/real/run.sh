#!/usr/bin/env bash
# All four tracks on real files (examples/real/params.yaml), then the arms beside floors recomputed on the same split.
# With the word verdict: what pretraining is worth in labels, four times; with the word adapters: all weights against
# adapters and probes, on nodules.
# LACUNA_SHARED names the folder that holds data/ with cxr, ct, multispectral and pointcloud. Finished stages are not
# repeated; REAL_FRESH=1 begins again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
data=${LACUNA_SHARED:-../../../shared}/data
if [ ! -f "$data/cxr/labels.csv" ]; then
    echo "make real: found no $data/cxr/labels.csv. Expected the folder with the real files; set LACUNA_SHARED to the folder that holds data/." >&2
    exit 2
fi
ln -sfn "$(cd "$data" && pwd)" source
if [ "${REAL_FRESH:-0}" = 1 ]; then
    rm -rf data artifacts reports .work
fi
stage() {   # stage NAME MARKER-OF-A-FINISHED-STAGE
    if [ -e "$3" ]; then
        echo "$1 $2: done before"
    else
        lacuna "$1" "$2"
    fi
}
tracks=(cxr lidc settlement shapes)
[ "${1:-}" != adapters ] || tracks=(lidc)
for name in "${tracks[@]}"; do
    stage ingest $name data/prepared/$name/index.parquet
done
if [ "${1:-}" = verdict ]; then
    for names in "shapes psb" "lidc malignancy" "tiles settlement" "cxr pneumonia"; do
        read -r pretraining name <<< "$names"
        stage pretrain $pretraining artifacts/pretrain/$pretraining/checkpoint.json
        stage verdict $name reports/verdict/$name/summary.txt
    done
    exit
fi
if [ "${1:-}" = adapters ]; then
    stage pretrain lidc artifacts/pretrain/lidc/checkpoint.json
    stage verdict texture reports/verdict/texture/summary.txt
    exit
fi
for name in cxr lidc settlement shapes; do
    stage pretrain $name artifacts/pretrain/$name/checkpoint.json
done
for name in pneumonia findings malignancy texture settlement psb dales; do
    stage finetune $name artifacts/finetune/$name/summary.json
    stage evaluate $name reports/evaluate/$name/metrics.json
done
stage few_shot psb reports/few_shot/psb/metrics.json
lacuna compare --out reports/compare
echo "reconstructions: examples/real/reports/pretrain/*/reconstruction.png"
