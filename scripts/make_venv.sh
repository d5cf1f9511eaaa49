#!/bin/sh
# make_venv.sh VENV [PYTHON]: make a virtual environment in VENV, unless a working one is there.
# Without PYTHON the newest of python3.13 ... python3.11 and python3 on PATH that really runs is taken:
# a name on PATH may be a version manager's shim for a Python that is switched off.
set -eu

venv=$1
wanted=${2:-}

# Python 3.11 or newer, with venv and pip's bootstrap (Debian splits them off).
suits() {
    "$1" -c 'import sys; assert sys.version_info >= (3, 11); import ensurepip, venv' >/dev/null 2>&1
}

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

for python in ${wanted:-python3.13 python3.12 python3.11 python3}; do
    if suits "$python"; then
        echo "making $venv with $("$python" --version)"
        exec "$python" -m venv "$venv"
    fi
done

{
    if [ -n "$wanted" ]; then
        echo "$wanted is not a Python 3.11 or newer with the venv and ensurepip modules."
    else
        echo "No Python 3.11 or newer with the venv and ensurepip modules was found on PATH."
    fi
    echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name one:"
    echo "    make PYTHON=/path/to/python3.12 ..."
} >&2
exit 1
