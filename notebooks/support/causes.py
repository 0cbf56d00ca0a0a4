"""Why something could not be installed or compiled, in one sentence, found in what cargo, rustc and pip say."""

import re
import shutil
from pathlib import Path

CAUSES = [
    (r"No space left on device|os error 28|Disk quota exceeded", "full"),
    (r"linker `\w+` not found|error: linker .* not found|failed to find tool \"(?:cc|gcc|clang)|is `c?c` installed", "compiler"),
    (r"requires rustc (\d+\.\d+)|is not supported by the following package", "rust"),
    (r"\(signal: 9|SIGKILL|out of memory|memory allocation of \d+ bytes failed|Cannot allocate memory", "memory"),
    (
        r"Could not resolve host|Couldn't resolve host|Could not connect|Couldn't connect|failed to connect|Connection refused|Connection timed out|"
        r"timed out|Network is unreachable|spurious network error|download of .* failed|failed to download|NewConnectionError|"
        r"Failed to establish a new connection|Temporary failure in name resolution|--offline was specified|ProxyError|SSLError",
        "network",
    ),
    (r"Permission denied|os error 13|Read-only file system", "rights"),
]


def cause(said):
    """The word for the first known cause in the lines `said`, the last lines first; None if there is none."""
    for pattern, word in CAUSES:
        if any(re.search(pattern, line) for line in said):
            return word
    return None


def free(place):
    """Megabytes that are free where `place` is, or would be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free // 1_000_000


def sentence(word, what, home):
    """What happened to `what`, and what to do."""
    home = Path(home)
    return {
        "full": f"{what}: the disk is full, {free(home)} MB are free at {home}; make room there, or name a folder on another disk in EMOJI_LAB_HOME, "
        "and run again: what is done is kept",
        "compiler": f"{what}: there is no C compiler, which links what Rust compiles; on Debian and Ubuntu: apt-get install gcc",
        "rust": f"{what}: this Rust is too old; with rustup: rustup update stable",
        "memory": f"{what}: a compiler was stopped for want of memory; close other programs, or set CARGO_BUILD_JOBS=1, and run again: what is done is kept",
        "network": f"{what}: its registry cannot be reached; look at the network (proxies and mirrors: kernel-setup.md, "
        "\"Offline machines and proxies\") and run again: what is done is kept",
        "rights": f"{what}: a file or folder may not be written; look at whose {home} is",
    }[word]
