#!/usr/bin/env bash
# Installs CUDA's compiler for building the `cuda` feature: no GPU, no driver, no root.
#
#   tools/install-cuda-toolkit.sh [FOLDER]     default: ~/.cache/emoji_lab/cuda
#
# It comes from NVIDIA's wheels on PyPI, about 100 MB to fetch. `emoji_lab/numerics/build.rs` finds it in the
# default folder; elsewhere say CUDA_HOME=FOLDER/nvidia/cu13. What *runs* the build brings its own
# driver and cuBLAS.
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
-*) echo "there is no option $1; --help says what there is" >&2; exit 2 ;;
esac
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/emoji_lab/cuda}
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
mark=$folder/.emoji_lab-cuda-toolkit
list=$folder/.emoji_lab-cuda-files
files_of() { (cd "$1" && find . -mindepth 1 ! -type d ! -name "${mark##*/}" ! -name "${list##*/}" -printf '%P\n' | LC_ALL=C sort); }
first="Made by tools/install-cuda-toolkit.sh, which replaces this folder as a whole."
if [[ -f $mark && $(<"$mark") == "$first"$'\n'"${wheels[*]}" ]]; then
    exit 0
fi
# An earlier release's mark, which others could have written as well: enough to use it, not to remove it.
if [[ -f $folder/complete && $(<"$folder/complete") == "${wheels[*]}" && -x $folder/nvidia/cu13/bin/nvcc ]]; then
    exit 0
fi
if [[ -e $folder || -L $folder ]]; then
    if [[ -L $folder || ! -d $folder ]]; then
        echo "$folder is not a folder (or a link to one); name another" >&2
        exit 1
    fi
    if [[ -n $(ls -A "$folder") ]] && ! { [[ -f $mark ]] && [[ $(head -n 1 "$mark") == "$first" ]]; }; then
        echo "$folder is not empty and was not made by this script; name another folder" >&2
        exit 1
    fi
    # What is not in the list of its own files is somebody's.
    if [[ -n $(ls -A "$folder") ]]; then
        if [[ ! -f $list ]]; then
            echo "$folder is of an earlier release, which kept no list of its files: move it away, or name another folder" >&2
            exit 1
        fi
        foreign=$(LC_ALL=C comm -13 <(LC_ALL=C sort "$list") <(files_of "$folder") | head -n 1)
        if [[ -n $foreign ]]; then
            echo "$folder/$foreign is not of this script, and would go with the folder: move it, or name another folder" >&2
            exit 1
        fi
    fi
fi
command -v g++ >/dev/null || { echo "g++ is needed: apt-get install g++" >&2; exit 1; }
mkdir -p "$(dirname "$folder")"
part=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$part"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary=:all: \
    --target "$part" "${wheels[@]}"
"$part/nvidia/cu13/bin/nvcc" --version >/dev/null
printf '%s\n%s\n' "$first" "${wheels[*]}" >"$part/${mark##*/}"
files_of "$part" >"$part/${list##*/}"
rm -rf "$folder"
mv "$part" "$folder"
