# shellcheck shell=sh
# Sourced by the programs beside it: finds a Python, and makes .venv ready once. Needs a POSIX shell and Python 3.10+.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)

die() {
    printf '%s: %s\n' "$(basename -- "$0")" "$1" >&2
    shift
    for line; do printf '  %s\n' "$line" >&2; done
    exit 69 # EX_UNAVAILABLE
}

# Prints major.minor; fails for a Python that is missing, broken or older than 3.10.
python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# Prints the Python to build .venv with: $PYTHON if set, else the first that is new enough.
find_python() {
    if [ -n "${PYTHON-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python3.10 python
    fi
    for candidate; do
        if python_version "$candidate" >/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# set_up EXTRAS: .venv holds gpu-runner with these extras, and comes first on PATH. At once where nothing changed:
# the stamp holds what the set-up depended on, and is written last, so an interrupted one is simply done again.
set_up() {
    extras=$1
    cd -- "$root" || exit
    command -v git >/dev/null || die 'git is not installed' 'Install it, for instance: apt-get install git'
    version=$(python_version .venv/bin/python) || version=
    if [ -z "$version" ] || ! is_ready "$extras" "$version"; then
        base=$(find_python) || die "Python 3.10 or newer is not installed (looked for: ${PYTHON:-python3, python3.13 ... python3.10})" \
            'Install it, for instance: apt-get install python3 python3-venv' 'or name one: PYTHON=/path/to/python3.12'
        version=$(python_version "$base")
        "$base" scripts/_setup.py --extras "$extras" --python-version "$version" --key "$(key_of "$version")" || exit
    fi
    PATH=$root/.venv/bin:$PATH
    VIRTUAL_ENV=$root/.venv
    export PATH VIRTUAL_ENV
    unset PYTHONHOME PYTHONPATH
}

key_of() {
    printf '%s | %s | %s\n' "$(cksum <pyproject.toml)" "$1" "$root"
}

# All extras satisfy the demand for some.
is_ready() {
    for stamp in ".venv/.ready-$1" .venv/.ready-dev,example; do
        [ -r "$stamp" ] && [ "$(cat -- "$stamp")" = "$(key_of "$2")" ] && return 0
    done
    return 1
}
