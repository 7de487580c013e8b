# Sourced where variables of the user's come in:
#
#   check_numbers LEAST NAME ...   refuses those that are set to anything but a whole number from LEAST on

check_numbers() {
    local least=$1 name
    shift
    for name in "$@"; do
        if [ -z "${!name:-}" ]; then continue; fi
        if ! [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || [ "${!name}" -lt "$least" ]; then
            printf 'error: %s=%q: not a whole number from %s on\n' "$name" "${!name}" "$least" >&2
            return 2
        fi
    done
}
