# The cargo that a kernel is given; light_metadata.py writes the lines above, which say what $real, $python and $light are.
#
# It makes cells quick in two ways. They are not optimised (below). And the compiler is started without cargo, which looks at
# some three hundred crates before it does so: a third of a second in which nothing can have changed since the cell before.
# So the compiler's command is kept in the build directory, and while the manifest, cargo's options and the environment are
# the same, the next cell is compiled by it. evcxr reads what rustc says the same as what cargo passes on. A kernel that
# starts forgets the command (launch_kernel.py), so that a changed crate is compiled then.
kept=kept-command

# As a wrapper of the compiler (`… RUSTC ARGUMENTS`): compiles the cell, and notes how.
if [ -n "${EMOJI_LAB_KEEPS-}" ]; then
    unset EMOJI_LAB_KEEPS RUSTC_WRAPPER
    case " $* " in
    *" --crate-name ctx "*) ;;
    *) exec "$@" ;;
    esac
    # Optimising takes more than half of a large cell's time, and what computes is in the crate. Level 2 is what evcxr asks
    # for when nobody asked; `:opt 3` in a cell is done as it says. Without levels, keeping parts for the next cell only costs time.
    case " $* " in
    *" opt-level=2 "*) quick=true ;;
    *) quick=false ;;
    esac
    left=$# before=''
    while [ "$left" -gt 0 ]; do
        word=$1 left=$((left - 1))
        shift
        [ "$before" = --out-dir ] && printf %s "$word/libctx.so" >"$kept/library"
        before=$word
        case $quick$word in
        trueopt-level=2) word=opt-level=0 ;;
        trueincremental=* | truecodegen-units=*) word=codegen-units=2 ;;
        esac
        set -- "$@" "$word"
    done
    {
        # What cargo tells the compiler in the environment; nothing else that may be there, such as a token.
        export -p | grep -E "^export (CARGO(_CRATE_NAME|_MANIFEST_DIR|_MANIFEST_PATH|_PRIMARY_PACKAGE|_PKG_[A-Z_]+)?|LD_LIBRARY_PATH)=('[^']*'|\"[^\"\$\`\\\\]*\")\$"
        for word in "$@"; do
            case $word in
            *\'*) word=$(printf %s "$word" | sed "s/'/'\\\\''/g") ;;
            esac
            printf "'%s' " "$word"
        done
        # evcxr reads there where the library is; else cargo would have to say it.
        printf '|| exit\ncp "$kept/library" "$EVCXR_EXECUTION_SO_PATH"\nexit 0\n'
    } >"$kept/command"
    exec "$@"
fi

# A kernel's first cell, which has no crates, empties Cargo.lock; without the versions that are compiled, cargo would ask
# the registry at each start, and compile anew what has a newer one. built.lock is prebuild.py's.
if [ -f built.lock ] && grep -q '^emoji_lab ' Cargo.toml && ! grep -qs '^name = "emoji_lab"' Cargo.lock; then
    cp built.lock Cargo.lock
fi
case "$1" in
metadata) exec "$python" -B "$light" "$real" "$@" ;;
build) ;;
*) exec "$real" "$@" ;;
esac

# A sum tells whether anything changed, and keeps nothing of it.
asked=$({ printf '%s\n' "$@"; export -p; cat Cargo.toml .cargo/config.toml; } 2>/dev/null | cksum)
if [ -f "$kept/asked" ] && [ "$(cat "$kept/asked")" = "$asked" ]; then
    . "./$kept/command"
fi
rm -rf "$kept"
# With a wrapper of its own evcxr does more than to compile; where it does not name the file, it is another evcxr.
if [ -n "${RUSTC_WRAPPER-}" ] || [ -z "${EVCXR_EXECUTION_SO_PATH-}" ] || ! mkdir "$kept"; then
    exec "$real" "$@"
fi
EMOJI_LAB_KEEPS=1 RUSTC_WRAPPER=$0 "$real" "$@" || exit
[ -f "$kept/command" ] && [ -f "$(cat "$kept/library")" ] && printf '%s\n' "$asked" >"$kept/asked"
exit 0
