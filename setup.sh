# shellcheck shell=sh
# Sourced by run.sh and test.sh with $root set: `set_up FILE...` makes $venv hold what the requirement files ask for.
# "$venv/installed" holds copies of the files that were installed, and is there only while .venv is whole: it is moved
# away before anything changes and comes back when all is done. So a .venv without it was killed half-made.

venv=${root:?}/.venv
log=$root/.venv.log
python=

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

find_python() { # Sets $python to a real path, which also stays when `python3` is that of this very .venv, activated.
    about='import os, sys
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], os.path.realpath(sys.executable)))
sys.exit(0 if sys.version_info >= (3, 10) else 1)'
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
        problem="PYTHON=$PYTHON does not run"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
        problem='none was found'
    fi
    for name; do
        if found=$("$name" -c "$about" 2>/dev/null </dev/null); then
            python=${found#* }
            return
        fi
        [ -z "$found" ] || problem="$name is ${found%% *}"
    done
    fail "Python 3.10 or newer is needed, but $problem; install one, or name it: PYTHON=/path/to/python"
}

usable() {
    [ -d "$venv/installed" ] && [ -x "$venv/bin/python" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(cat "$venv/interpreter")" = "$python" ]; }
}

up_to_date() {
    usable || return 1
    for file; do
        [ -f "$venv/installed/$file" ] || return 1
        [ "$(cat "$venv/installed/$file")" = "$(cat "$root/$file" 2>/dev/null)" ] || return 1
    done
}

lock() { # The lock stays with file descriptor 9, so the system frees it however this shell and its pip end.
    [ -w "$root" ] || fail "cannot write to $root"
    exec 9>>"$root/.venv.lock"
    "$python" -c 'import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another set-up of .venv to end ...", file=sys.stderr)
        fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    sys.exit("error: cannot lock .venv.lock: %s" % error)' || exit 2
}

make_venv() {
    rm -rf "$venv/installed" "$venv"
    "$python" -m venv "$venv" && printf '%s\n' "$python" >"$venv/interpreter"
}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"
}

find_uv() { # Sets $uv. Fails where pip has an index of its own: uv does not read pip's settings.
    ! "$venv/bin/python" -m pip config list | grep -E '(\.|^:env:\.extra-)index-url=|\.no-index=' >/dev/null || return 1
    uv=$(command -v uv) || { pip_install --retries 1 uv==0.13.9 && uv=$venv/bin/uv; }
}

install_file() { # uv takes less than half of pip's time, the second time on a machine a fifth. Where it fails, pip says why.
    # --project: else settings for uv in a folder above would count, as the place to install to.
    if find_uv && "$uv" pip install --project / --python "$venv/bin/python" --compile-bytecode --no-progress -r "$1"; then
        return
    fi
    pip_install -r "$1"
}

install_copies() { # From copies, so that a file edited meanwhile is not taken for installed.
    mkdir "$venv/wanted" && (
        trap 'exit 130' INT # pip ends by itself at Ctrl-C, and what would come next here must not begin
        cd "$root" && cp "$@" "$venv/wanted" && shift $(($# - 1)) && install_file "$venv/wanted/$1"
    ) && rm -rf "$venv/previous" && mv "$venv/wanted" "$venv/installed"
}

install() {
    if usable; then
        echo "Updating .venv: installing $* (log: $log) ..." >&2
        mv "$venv/installed" "$venv/previous"
        : >"$log"
    else
        echo "Setting up .venv (once, a few minutes): installing torch and others from $* (log: $log) ..." >&2
        if ! make_venv >"$log" 2>&1 </dev/null; then
            rm -rf "$venv"
            fail "$python cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv); see $log"
        fi
    fi
    if ! install_copies "$@" >>"$log" 2>&1 </dev/null; then
        if [ -d "$venv/previous" ]; then
            rm -rf "$venv/wanted"
            mv "$venv/previous" "$venv/installed"
        else
            rm -rf "$venv"
        fi
        reason=$(sed -n 's/^ERROR: //p' "$log" | tail -n 1)
        ! grep 'connection broken by' "$log" >/dev/null || reason="no connection to the package index; $reason"
        fail "installing $* failed${reason:+: $reason}; see $log"
    fi
}

set_up() { # The last FILE includes those before it.
    [ -z "${PYTHON:-}" ] || find_python
    if up_to_date "$@"; then
        return
    fi
    [ -n "$python" ] || find_python
    trap 'exit 130' INT
    lock
    up_to_date "$@" || install "$@"
    exec 9>&-
    trap - INT
}
