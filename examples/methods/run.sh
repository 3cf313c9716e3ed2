#!/usr/bin/env bash
# Every method of examples/methods/params.yaml on the embedded sample, or those named: bash examples/methods/run.sh mae further
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ ! -e data/prepared ]; then
    for name in xray ct parcels shapes; do lacuna sample $name; done
    for name in xray ct volumes parcels shapes; do lacuna ingest $name; done
fi
names() { python -c 'import sys, yaml; print("\n".join(yaml.safe_load(open("params.yaml"))[sys.argv[1]]))' "$1"; }
methods=("$@")
if [ ${#methods[@]} = 0 ]; then
    mapfile -t methods < <(names pretrain; names adapt)
fi
for name in "${methods[@]}"; do
    if names adapt | grep -qx "$name"; then lacuna adapt "$name"; else lacuna pretrain "$name"; fi
done
echo "reconstructions: examples/methods/reports/*/*/reconstruction.png"
