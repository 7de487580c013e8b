# Sourced where variables of the user's come in:
#
#   check_numbers LEAST NAME ...   refuses those that are set to anything but a whole number from LEAST on
#   check_sizes NAME ...           refuses those that are set to anything but a number above 0, decimals allowed
#   settle_switches NAME ...       leaves true or false in each, from true, false, 1, 0 or nothing; refuses the rest
#   make_paths_absolute            what names a file or folder seen from here goes on to, whatever the current folder

check_numbers() {
    local least=$1 name
    shift
    for name in "$@"; do
        if [ -z "${!name:-}" ]; then continue; fi
        if ! [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || [ "${!name}" -lt "$least" ]; then
            refuse_variable "$name" "not a whole number from $least on"
            return
        fi
    done
}

check_sizes() {
    local name
    for name in "$@"; do
        if [ -n "${!name:-}" ] && ! [[ ${!name} =~ ^[0-9]{1,9}(\.[0-9]{1,9})?$ && ${!name} =~ [1-9] ]]; then
            refuse_variable "$name" "not a number above 0"
            return
        fi
    done
}

settle_switches() {
    local name
    for name in "$@"; do
        case ${!name:-} in
            true | 1) printf -v "$name" true ;;
            "" | false | 0) printf -v "$name" false ;;
            *) refuse_variable "$name" "neither true (1) nor false (0)"; return ;;
        esac
    done
}

make_paths_absolute() {
    local name given=${OBJECTIVES:-}
    for name in ACTOR_MODEL REWARD_MODEL COST_MODEL "${!MODEL_@}" BASE_MODEL TOKENIZER HOSTFILE METHODS TASKS; do
        if [ -e "${!name:-}" ]; then export "$name=$(realpath -s "${!name}")"; fi
    done
    for name in SFT_DATA SFT_VALIDATION PREFERENCE_DATA PREFERENCE_VALIDATION PROMPTS TEST_PROMPTS; do
        if [ -n "${!name:-}" ]; then export "$name=$(absolute_sources "${!name}")"; fi
    done
    if [ -n "${OBJECTIVES:-}" ]; then export OBJECTIVES && OBJECTIVES=$(absolute_functions "$OBJECTIVES"); fi
    if ! same_words "$given" "${OBJECTIVES:-}"; then refuse_variable OBJECTIVES "$BLANKS"; return; fi
    given=${JUDGES:-}
    if [ -n "$given" ]; then export JUDGES && JUDGES=$(absolute_functions "$given"); fi
    if ! same_words "$given" "${JUDGES:-}"; then refuse_variable JUDGES "$BLANKS"; return; fi
    if ! same_words x "${TASKS:-x}"; then refuse_variable TASKS "$BLANKS"; fi
}

BLANKS="a file in a folder with blanks in its path"
same_words() { [ "$(wc -w <<< "$1")" -eq "$(wc -w <<< "$2")" ]; } # in number

absolute_functions() { # of objectives, or judges, $1, the files of their functions, but for those that are found from the root, too
    local objective path root words=()
    root=$(dirname "${BASH_SOURCE[0]}")/../..
    for objective in $1; do
        path=${objective#*=} path=${path%:*}
        if [[ $objective == *=* && -f $path ]] && ! [ "$path" -ef "$root/$path" ]; then
            objective=${objective%%=*}=$(realpath -s "$path"):${objective##*:}
        fi
        words+=("$objective")
    done
    echo "${words[*]}"
}

absolute_sources() { # of data $1, PATH_OR_NAME[:fraction][,...]
    local parts path fraction i
    IFS=, read -ra parts <<< "$1"
    for i in "${!parts[@]}"; do
        path=${parts[i]} fraction=""
        if ! [ -e "$path" ] && [[ $path == *:* ]]; then fraction=:${path##*:} path=${path%:*}; fi
        if [ -e "$path" ]; then parts[i]=$(realpath -s "$path")$fraction; fi
    done
    (IFS=, && echo "${parts[*]}")
}

refuse_variable() { # $1, because of $2
    printf 'error: %s=%q: %s\n' "$1" "${!1}" "$2" >&2
    return 2
}
