# Sourced from the repository's root: leaves in PYTHON an interpreter that has the packages of requirements.txt.
#
#   PYTHON=/path/to/python   given: used as it is, and refused in one line if packages are missing
#   .venv, python3           otherwise the first of them that has the packages
#   .venv                    made and filled from requirements.txt when neither has them

missing_packages() { # the lines of requirements.txt that interpreter $1 does not satisfy
    "$1" - <<'PY'
import importlib.metadata, sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(f"Python {sys.version.split()[0]}, 3.11 to 3.13 needed")
wrong = []
for line in open("requirements.txt"):
    name, _, version = line.split("#")[0].strip().partition("==")
    if name:
        try:
            found = importlib.metadata.version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found != version:
            wrong.append(f"{name}=={version}")
if wrong:
    sys.exit("missing " + " ".join(wrong))
PY
}

make_environment() {
    local base
    for base in python3 python3.13 python3.12 python3.11; do
        if "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "installing requirements.txt into .venv (once, a few minutes)"
            "$base" -m venv .venv
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
            return
        fi
    done
    echo "error: no Python 3.11 to 3.13 found; install one, or set PYTHON=/path/to/python" >&2
    return 2
}

if [ -n "${PYTHON:-}" ]; then
    reason=$(missing_packages "$PYTHON" 2>&1) || { echo "error: PYTHON=$PYTHON: $reason" >&2; exit 2; }
else
    for PYTHON in "$PWD/.venv/bin/python" python3 ""; do
        if [ -x "$(command -v "$PYTHON")" ] && missing_packages "$PYTHON" >/dev/null 2>&1; then break; fi
    done
    if [ -z "$PYTHON" ]; then
        make_environment || exit $?
        PYTHON=$PWD/.venv/bin/python
    fi
fi
export PYTHON
