"""The standard library's source as the kernel's type inference reads it: all but the processors' own instructions.

rust-analyzer reads the library whole when a kernel starts, and again with its first crate. Of 21 MB, 8 are the functions of
`std::arch` for x86, of which no cell has a variable. So it gets a folder of links to the files, in which the module of all
processors is empty. What is compiled is not touched: rust-analyzer alone looks at RUST_SRC_PATH.
"""

import os
import shutil
import tempfile
from pathlib import Path

# Below the library; included by core, whose module `arch` is all that it makes public.
PROCESSORS = Path("stdarch/crates/core_arch/src/mod.rs")
EMPTY = "// Emptied by emoji_lab's light_library.py: see there.\npub mod arch {}\n"


def link_or_copy(source, target):
    """A symbolic link would not be followed, and another disk or another user's file takes no other."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def library(folder, sysroot):
    """Makes `folder` the lighter source of `sysroot`'s standard library; whether it is there then."""
    source = Path(sysroot) / "lib/rustlib/src/rust/library"
    if (folder / PROCESSORS).exists():
        return True
    # A library that is put together in another way stays as it is.
    if not (source / PROCESSORS).exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        shutil.copytree(
            source,
            part,
            ignore=lambda place, names: ["stdarch"] if Path(place) == source else [],
            copy_function=link_or_copy,
            dirs_exist_ok=True,
        )
        (part / PROCESSORS).parent.mkdir(parents=True)
        (part / PROCESSORS).write_text(EMPTY)
        part.chmod(0o755)
        part.rename(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        # Another kernel may have made it meanwhile.
        return (folder / PROCESSORS).exists()
    return True
