# Sourced from the repository's root: leaves in PYTHON an interpreter that has the packages of requirements.txt.
#
#   PYTHON=/path/to/python   given: used as it is, and refused in one line if packages are missing or of other versions;
#                            ANY_VERSIONS=1 takes other versions, and a later Python, with one line that lists them
#   .venv, python3           otherwise the first of them that has the packages
#   .venv                    made and filled from requirements.txt when neither has them

unsatisfied() { # what interpreter $1 does not satisfy; its exit code: 3 if all of that is there in other versions
    "$1" - <<'PY'
import importlib.metadata, sys
python = sys.version.split()[0]
if sys.version_info < (3, 11):
    sys.exit(f"Python {python}, 3.11 to 3.13 needed")
missing, others = [], [f"Python {python} in place of 3.11 to 3.13"] if sys.version_info >= (3, 14) else []
for line in open("requirements.txt"):
    name, _, version = line.split("#")[0].strip().partition("==")
    if name:
        try:
            found = importlib.metadata.version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0
            if found != version:
                others.append(f"{name} {found} in place of {version}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name}=={version}")
said = [", ".join(others)] if others else []
if missing:
    sys.exit("; ".join(["missing " + " ".join(missing), *said]))
if others:
    print(*said, file=sys.stderr)
    sys.exit(3)
PY
}

check_given() { # the interpreter that PYTHON names
    local reason code=0
    reason=$(unsatisfied "$PYTHON" 2>&1) || code=$?
    if [ "$code" -eq 0 ] || [ "${ACCEPTED_VERSIONS:-}" = "$PYTHON: $reason" ]; then return; fi # or was said before
    case $code:${ANY_VERSIONS:-} in
        3:1 | 3:true)
            echo "warning: PYTHON=$PYTHON: $reason (ANY_VERSIONS=$ANY_VERSIONS: tested with the latter alone)" >&2
            export ACCEPTED_VERSIONS="$PYTHON: $reason" ;;
        3:*) echo "error: PYTHON=$PYTHON: $reason; ANY_VERSIONS=1 takes it as it is" >&2; return 2 ;;
        *) echo "error: PYTHON=$PYTHON: $reason" >&2; return 2 ;;
    esac
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
    check_given || exit 2
else
    for PYTHON in "$PWD/.venv/bin/python" python3 ""; do
        if [ -x "$(command -v "$PYTHON")" ] && unsatisfied "$PYTHON" >/dev/null 2>&1; then break; fi
    done
    if [ -z "$PYTHON" ]; then
        make_environment || exit $?
        PYTHON=$PWD/.venv/bin/python
    fi
fi
export PYTHON
