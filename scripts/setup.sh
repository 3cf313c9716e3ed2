#!/usr/bin/env bash
# Sets up this checkout: system libraries, .venv with the pinned packages of constraints.txt, and lacuna itself
# (editable). Safe to repeat: a stamp inside .venv tells that nothing has changed, and then this takes milliseconds.
#
#   PYTHON=/path/to/python3.12   the interpreter to use; otherwise the first of 3.11, 3.12, 3.13, python3, 3.14
#   LACUNA_TORCH=cpu|cuda        which build of torch (default cpu: smaller by gigabytes, and enough for `make repro`)
#   TORCH_INDEX=URL              where that build is; cpu: PyTorch's own CPU index unless you name a mirror;
#                                cuda: only what pip is configured with unless you name an index
# What you choose is kept in .venv, so that a later `make` needs no variable.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv
STAMP=$VENV/lacuna-setup.sha256
CHOICES=$VENV/lacuna-choices
CPU_INDEX=https://download.pytorch.org/whl/cpu
NEEDED_GB=4   # the environment takes 2.6, and pip unpacks beside it

step="starting"
trap '[ $? -eq 0 ] || echo "Set-up stopped while $step. Mend the cause above and repeat the command." >&2' EXIT

say() { printf '%s\n' "$*"; }
fail() { trap - EXIT; printf '%s\n' "$*" >&2; exit 1; }

kept() { sed -n "s/^$1=//p" "$CHOICES" 2>/dev/null || true; }
if [ -z "${LACUNA_TORCH:-}" ]; then   # an index belongs to the build that it was named with
    LACUNA_TORCH=$(kept LACUNA_TORCH)
    TORCH_INDEX=${TORCH_INDEX:-$(kept TORCH_INDEX)}
fi
LACUNA_TORCH=${LACUNA_TORCH:-cpu}
TORCH_INDEX=${TORCH_INDEX:-}
PYTHON=${PYTHON:-$(kept PYTHON)}
case $LACUNA_TORCH in cpu|cuda) ;; *) fail "LACUNA_TORCH: found '$LACUNA_TORCH', expected cpu or cuda." ;; esac

# The key holds all that decides what .venv contains, the folder included: environments cannot be moved.
key=$( { cat pyproject.toml constraints.txt scripts/setup.sh scripts/system_libraries.sh
         printf '%s\n' "$ROOT" "$LACUNA_TORCH" "$TORCH_INDEX" "$PYTHON"; } | sha256sum | cut -d' ' -f1)
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$key" ]; then
    exit 0
fi

exec 9<"${BASH_SOURCE[0]}" && flock 9   # two terminals: the second waits, then finds the work done
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$key" ]; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python3.14}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            say "$candidate"
            return
        fi
    done
}

free_gb() { df -Pk "$ROOT" | awk 'NR == 2 {print int($4 / 1048576)}'; }

# Quiet twice: errors only. A warning for each package and each configured index would bury them.
pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check -qq "$@"; }

reachable() {
    "$VENV/bin/python" - "$1/torch/" <<'PY'
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=15).close()
except OSError:
    sys.exit(1)
PY
}

# The label +cpu is what tells the CPU build apart: only a wheel that carries it can be taken here, from the CPU index or
# from a folder that pip is configured with. --no-deps: the extra index is trusted for torch alone.
install_cpu_torch() {
    local version=$1 index=${TORCH_INDEX:-$CPU_INDEX}
    if pip_install --no-deps --extra-index-url "$index" --retries 1 --timeout 15 "torch==$version+cpu"; then
        return
    fi
    if reachable "$index"; then
        fail "torch $version for the CPU could not be installed although $index answers (pip's reason is above).
Name another index with TORCH_INDEX=URL, another interpreter with PYTHON=..., or take the GPU build: LACUNA_TORCH=cuda."
    fi
    say "The CPU build of torch is not to be had: $index does not answer. Taking torch $version from what pip is"
    say "configured with; on Linux that may be the GPU build, several gigabytes. TORCH_INDEX=URL names a mirror."
    pip_install --constraint constraints.txt "torch==$version"
}

install_cuda_torch() {
    local version=$1
    "$VENV/bin/python" -m pip uninstall --quiet --yes torch   # the CPU build satisfies the same version
    pip_install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$version"
    "$VENV/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || fail \
        "LACUNA_TORCH=cuda: pip installed a torch without CUDA. Name the index that has the build for your driver, e.g.
    LACUNA_TORCH=cuda TORCH_INDEX=https://download.pytorch.org/whl/cu130 make setup"
}

torch_build() {   # prints cpu, cuda or nothing for the torch of the wanted version that is there already
    "$VENV/bin/python" - "$1" 2>/dev/null <<'PY' || true
import importlib.metadata, sys
found = importlib.metadata.version("torch")
if found.split("+")[0] == sys.argv[1]:
    import torch
    print("cpu" if torch.version.cuda is None else "cuda")
PY
}

step="looking for python"
python=$(find_python)
[ -n "$python" ] || fail "No python of version 3.11 or later: looked for ${PYTHON:-python3.11 to python3.14}. On Debian 12, Debian 13,
Ubuntu 24.04 or later: apt-get install python3 python3-venv. Or name one: PYTHON=/path/to/python3.12 make setup"

step="installing system libraries"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    LACUNA_NEEDS_VENV_OF=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    export LACUNA_NEEDS_VENV_OF
fi
bash scripts/system_libraries.sh || fail "Set-up stopped: see above for what the system lacks."

step="making .venv"
usable() {   # made here, working, and of the python that is asked for
    grep -qsF "$VENV" "$VENV/bin/activate" && "$VENV/bin/python" -c 'import pip' 2>/dev/null \
        && [ "$("$VENV/bin/python" --version)" = "$("$python" --version)" ]
}
if [ -e "$VENV" ] && ! usable; then
    say "Making .venv anew: it was moved, is broken, or is of another python than $("$python" --version)."
    rm -rf "$VENV"
fi
if [ ! -e "$VENV" ]; then
    [ "$(free_gb)" -ge "$NEEDED_GB" ] || fail "Disk: found $(free_gb) GB free under $ROOT, expected $NEEDED_GB GB. Make room, then repeat."
    "$python" -m venv "$VENV"
fi
rm -f "$STAMP"

# setuptools first: building our own editable install then needs no second environment and no second download.
step="installing setuptools"
pip_install --constraint constraints.txt setuptools

step="installing torch"
version=$(sed -n 's/^torch==//p' constraints.txt)
say "1/2 torch $version ($LACUNA_TORCH build) into .venv, $("$VENV/bin/python" --version)"
if [ "$(torch_build "$version")" != "$LACUNA_TORCH" ]; then
    "install_${LACUNA_TORCH}_torch" "$version"
fi

step="installing the packages of constraints.txt"
say "2/2 the $(grep -c == constraints.txt) pinned packages; about two minutes where downloads are quick"
pip_install --constraint constraints.txt --no-build-isolation --editable '.[all,dev]'

printf '%s\n' "LACUNA_TORCH=$LACUNA_TORCH" "TORCH_INDEX=$TORCH_INDEX" "PYTHON=$PYTHON" > "$CHOICES"
printf '%s\n' "$key" > "$STAMP.part" && mv "$STAMP.part" "$STAMP"
say "Ready after $SECONDS s: $VENV"
