#!/usr/bin/env bash
# Installs CUDA's compiler for building the `cuda` feature: no GPU, no driver, no root.
#
#   tools/install-cuda-toolkit.sh [FOLDER]     default: ~/.cache/emoji_lab/cuda
#
# It comes from NVIDIA's wheels on PyPI, about 100 MB to fetch. `emoji_lab/build.rs` finds it in the
# default folder; elsewhere say CUDA_HOME=FOLDER/nvidia/cu13. What *runs* the build brings its own
# driver and cuBLAS.
set -euo pipefail
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/emoji_lab/cuda}
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
if [[ -f $folder/complete && $(<"$folder/complete") == "${wheels[*]}" ]]; then
    exit 0
fi
if [[ -d $folder && ! -f $folder/complete && -n $(ls -A "$folder") ]]; then
    echo "$folder is not empty and was not made by this script; name another folder" >&2
    exit 1
fi
command -v g++ >/dev/null || { echo "g++ is needed: apt-get install g++" >&2; exit 1; }
mkdir -p "$(dirname "$folder")"
part=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$part"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary=:all: \
    --target "$part" "${wheels[@]}"
"$part/nvidia/cu13/bin/nvcc" --version >/dev/null
echo "${wheels[*]}" >"$part/complete"
rm -rf "$folder"
mv "$part" "$folder"
