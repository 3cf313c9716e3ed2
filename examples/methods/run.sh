#!/usr/bin/env bash
# Every method of examples/methods/params.yaml on the embedded sample, or those named: bash examples/methods/run.sh mae simmim
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ ! -e data/prepared ]; then
    for name in xray ct parcels shapes; do lacuna sample $name; done
    for name in xray ct volumes parcels shapes; do lacuna ingest $name; done
fi
methods=("$@")
if [ ${#methods[@]} = 0 ]; then
    mapfile -t methods < <(python -c 'import yaml; print("\n".join(yaml.safe_load(open("params.yaml"))["pretrain"]))')
fi
for name in "${methods[@]}"; do lacuna pretrain "$name"; done
echo "reconstructions: examples/methods/reports/pretrain/*/reconstruction.png"
