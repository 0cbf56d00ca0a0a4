# Sourced by the scripts beside it: Chromium, and the Python package that drives it.

find_chromium() {
    local name
    for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return
    done
    return 1
}

# Sets `chromium`; with `$1` true, root may have Debian's installed. Ends with 3 if there is none.
need_chromium() {
    if ! chromium=$(find_chromium) && $1 && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -q -y --no-install-recommends chromium fonts-noto-color-emoji fonts-dejavu-core
        chromium=$(find_chromium) || true
    fi
    if [ -z "${chromium:-}" ]; then
        echo "browser: skipped: no chromium; install one (Debian: apt-get install chromium, or tests/browser/run --install as root), or name one in CHROMIUM" >&2
        exit 3
    fi
}

# Makes the environment `$venv` with what `$here/requirements.txt` names.
need_playwright() {
    cmp -s "$here/requirements.txt" "$venv/installed.txt" && return
    echo "set-up: playwright, in $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
}
