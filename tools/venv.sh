# Sourced by tools/serve and tools/test: a virtual environment in .venv with the pinned packages of a list.
#
#   make_venv LIST    makes or refreshes it; immediate when nothing has changed since the last time

make_venv() {
    local list=$1
    if is_fresh "$list"; then  # also for somebody who may not write here
        return
    fi
    # Two starts at once must not install into each other.
    if ! { exec 9>.venv.lock; } 2>/dev/null; then
        echo "packages are to be installed into $PWD/.venv, and this user may not write there:" >&2
        echo "run tools/$(basename "$0") once as the one whom that folder belongs to" >&2
        exit 1
    fi
    ! command -v flock >/dev/null || flock 9
    is_fresh "$list" || install_packages "$list"
    exec 9>&-
}

is_fresh() {
    [ "$(cat ".venv/$(basename "$1").stamp" 2>/dev/null)" = "$(stamp_of "$1")" ] && [ -x .venv/bin/python ]
}

stamp_of() {
    cat "$1" pyproject.toml tools/venv.sh | sha256sum | cut -d' ' -f1
}

install_packages() {
    local list=$1 stamp python
    stamp=$(stamp_of "$list")
    python=$(find_python) || exit 1
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then  # none yet, or one that was never finished
        ensure_venv_module "$python"
        echo "making a virtual environment in .venv" >&2
        "$python" -m venv --clear .venv
    fi
    echo "installing pinned packages from $list" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$list" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . >&2
    echo "$stamp" >".venv/$(basename "$list").stamp"
}

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$name"
            return
        fi
    done
    echo "trisync needs Python 3.11 or newer, and there is none on the PATH" >&2
    return 1
}

# Debian leaves venv out of its Python; as root it can be had here, else the one command is said.
ensure_venv_module() {
    if "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        return
    fi
    local install='apt-get install -y python3-venv'
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Debian's python3-venv" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install; } >/dev/null
        return
    fi
    echo "Python's venv module is missing. On Debian and Ubuntu this installs it:  sudo $install" >&2
    exit 1
}
