# Sourced by run_all.sh and the training scripts, after objectives.sh: what the name of a run stands for, from the table
# presets/methods.txt, which explains its columns, and further rows in the file METHODS.
#
#   read_methods         reads the rows; refuses in one line what is none
#   list_methods         shows their runs
#   check_run RUN        refuses a name in one line, unless it stands for a run; files are called by it
#   run_flags RUN        the flags of its row; condition_flags @CONDITION STAGE: those that a condition adds to the training
#   maker_of RUN         the stage or script that makes it
#   sources_of_run RUN   the models that it is made from; warm_start_of RUN: the policy that it starts from, if another
#                        than all others (WARM_START)
#   experts_of RUN       NAME=RUN of every objective, where it is made from a run of each
#   is_own RUN           whether its row is in METHODS
#   is_on_front RUN      whether it is one of the points of a front
#   seed_of RUN          #SEED, or nothing
#
# The suffixes of names (_full, @CONDITION, #SEED) are taken off here alone; in Python, in eval/results/runs.py.

METHOD_COLUMNS="run | method | detail | place | style | stands for | made by | from | flags"
METHOD_RUNS=() METHOD_LABELS=() METHOD_PLACES=() METHOD_MAKERS=() METHOD_SOURCES=() METHOD_FLAGS=() # an entry a row

read_methods() {
    local file line number
    for file in presets/methods.txt ${METHODS:+"$METHODS"}; do
        OWN_ROWS=${#METHOD_RUNS[@]} # from this one on, if there are some
        if ! [ -f "$file" ]; then refuse_variable METHODS "no such file"; return; fi
        number=0
        while IFS= read -r line || [ -n "$line" ]; do
            number=$((number + 1))
            if [[ $line =~ ^[[:space:]]*(#|$) ]]; then continue; fi
            add_method "$line" "$file:$number" "$(dirname "$file")" || return
        done < "$file"
    done
}

add_method() { # the row $1, at $2, in folder $3
    local cells i run
    IFS='|' read -ra cells <<< "$1|"
    if [ ${#cells[@]} -ne 9 ]; then echo "error: $2: the columns are $METHOD_COLUMNS" >&2; return 2; fi
    for i in "${!cells[@]}"; do # without blanks around them
        cells[i]=${cells[i]#"${cells[i]%%[![:space:]]*}"} cells[i]=${cells[i]%"${cells[i]##*[![:space:]]}"}
    done
    run=${cells[0]}
    if [ "${cells[*]}" = "${METHOD_COLUMNS// | / }" ]; then return; fi # the head of the table
    if ! [[ $run =~ ^@?[A-Za-z0-9_.]+(\{(objective|w|equal)\})?$ ]]; then
        echo "error: $2: \"$run\" cannot be the name of a run" >&2; return 2
    fi
    if is_row "$run" "${cells[6]}"; then echo "error: $2: there is a row $run already" >&2; return 2; fi
    METHOD_RUNS+=("$run") METHOD_LABELS+=("${cells[1]} ${cells[2]}") METHOD_PLACES+=("${cells[3]}")
    METHOD_MAKERS+=("${cells[6]}") METHOD_SOURCES+=("${cells[7]}") METHOD_FLAGS+=("${cells[8]}")
    if [[ ${cells[8]} == *.py:* ]]; then METHOD_FLAGS[-1]=$(found_beside "$3" "${cells[8]}"); fi
    if ! same_words "${cells[8]}" "${METHOD_FLAGS[-1]}"; then echo "error: $2: $BLANKS" >&2; return 2; fi
}

is_row() { # whether run $1 has a row; of a condition, one that serves stage $2
    local row
    for row in "${!METHOD_RUNS[@]}"; do
        if [ "${METHOD_RUNS[row]}" != "$1" ]; then continue; fi
        if [[ $1 != @* ]] || [ "${METHOD_MAKERS[row]}" = "$2" ]; then return; fi
    done
    return 1
}

found_beside() { # flags $2, with files of Python code that lie in folder $1
    local word path words=()
    for word in $2; do
        path=${word%%:*}
        if [[ $word == *.py:* ]] && ! [ -e "$path" ] && [ -e "$1/$path" ]; then word=$(realpath -s "$1/$path"):${word#*:}; fi
        words+=("$word")
    done
    echo "${words[*]}"
}

list_methods() {
    local row run
    for row in "${!METHOD_RUNS[@]}"; do
        run=${METHOD_RUNS[row]}
        if [ "${METHOD_PLACES[row]}" = start ] || [[ $run == *"{equal}" ]]; then continue; fi
        printf '  %-18s  %-25s  %s\n' "$run" "${METHOD_LABELS[row]}" "${METHOD_FLAGS[row]}"
    done
}

# ---- names -------------------------------------------------------------------------------------------------

condition_of() { # of name $1: nothing or @CONDITION
    local variant=${1#"${1%%[@#]*}"}
    echo "${variant%%#*}"
}

seed_of() { # of name $1: nothing or #SEED
    if [[ $1 == *"#"* ]]; then echo "#${1#*#}"; fi
}

find_method() { # of name $1, the RUN: leaves its ROW, the OBJECTIVE or WEIGHTS in the name, in SCOPE full if it asks for it
    local run=${1%%[@#]*} code=1
    RUN=$1
    SCOPE=${GRADIENT_SCOPE:-}
    if [[ $run == *_full ]]; then
        code=0 && match_rows "${run%_full}" "$1" || code=$?
        if [ "$code" -eq 0 ] && [[ ${METHOD_FLAGS[ROW]} == *"{scope}"* ]]; then SCOPE=full; return; fi
    fi
    if [ "$code" -ne 2 ]; then code=0 && match_rows "$run" "$1" || code=$?; fi
    if [ "$code" -eq 1 ]; then
        echo "error: no method is known for the run \"$1\" (there are $(shown_runs)," \
            "each also with $(shown_conditions @) and #SEED)" >&2
    fi
    if [ "$code" -ne 0 ]; then return 2; fi
}

match_rows() { # leaves in ROW that of run $1, called $2; 1: there is none, 2: one, but for the weights, as has been said
    local pattern prefix rest
    OBJECTIVE="" WEIGHTS=""
    for ROW in "${!METHOD_RUNS[@]}"; do # names before patterns
        if [ "${METHOD_RUNS[ROW]}" = "$1" ] && [ "${METHOD_PLACES[ROW]}" != start ]; then return; fi
    done
    for ROW in "${!METHOD_RUNS[@]}"; do
        pattern=${METHOD_RUNS[ROW]} prefix=${METHOD_RUNS[ROW]%%"{"*}
        if [[ $1 != "$prefix"* || $pattern == @* || ${METHOD_PLACES[ROW]} == start ]]; then continue; fi
        rest=${1#"$prefix"}
        case ${pattern#"$prefix"} in
            "") if [ -z "$rest" ]; then return; fi ;;
            "{objective}") if is_objective "$rest"; then OBJECTIVE=$rest; return; fi ;;
            "{equal}") if are_equal "$rest"; then WEIGHTS=$rest; return; fi ;;
            "{w}") check_weights "$2" "$rest" && WEIGHTS=$rest; return ;;
        esac
    done
    return 1
}

shown_runs() { # joined by commas
    local row name runs=()
    for row in "${!METHOD_RUNS[@]}"; do
        if [ "${METHOD_PLACES[row]}" = start ]; then continue; fi
        case ${METHOD_RUNS[row]} in
            *"{objective}")
                for name in "${OBJECTIVE_NAMES[@]}"; do runs+=("${METHOD_RUNS[row]/"{objective}"/$name}"); done ;;
            *"{w}") runs+=("${METHOD_RUNS[row]/"{w}"/W}") ;;
            @* | *"{equal}") ;;
            *) runs+=("${METHOD_RUNS[row]}") ;;
        esac
    done
    echo "${runs[*]}" | sed 's/ /, /g'
}

check_run() {
    local condition seed
    condition=$(condition_of "$1") seed=$(seed_of "$1")
    find_method "$1" || return 2
    condition_flags "$condition" "$(stage_of "$1")" > /dev/null || return 2
    if [ -n "$seed" ] && ! [[ $seed =~ ^#(0|[1-9][0-9]{0,8})$ ]]; then
        echo "error: no seed of the run \"$1\": \"${seed#\#}\" is not a whole number" >&2
        return 2
    fi
}

# ---- weights -----------------------------------------------------------------------------------------------

check_weights() { # of run $1: $2, that of the first of two objectives, or those of all, joined by _
    local weight weights count=${#OBJECTIVE_NAMES[@]}
    IFS=_ read -ra weights <<< "$2"
    if [ "$count" -le 2 ]; then weights=("$2"); fi
    for weight in "${weights[@]}"; do
        if ! [[ $weight =~ ^(0|1|0?\.[0-9]{1,9}|[01]\.0{1,9})$ ]]; then
            refuse_weights "$1" "\"$weight\" is not a number from 0 to 1"; return
        fi
    done
    if [ "$count" -eq 1 ]; then refuse_weights "$1" "there is one objective"; return; fi
    if [ "$count" -eq 2 ]; then return; fi
    if [ ${#weights[@]} -ne "$count" ]; then
        refuse_weights "$1" "$count objectives need $count, joined by _, in the order ${OBJECTIVE_NAMES[*]}"
    elif ! sum_to_one "${weights[@]}"; then
        refuse_weights "$1" "they do not sum to 1"
    fi
}

sum_to_one() { # as far as weights rounded to two decimals do
    printf '%s\n' "$@" | awk '{ sum += $1 } END { exit !(sum - 1 <= 0.005 * NR + 1e-9 && 1 - sum <= 0.005 * NR + 1e-9) }'
}

refuse_weights() { # of run $1, because of $2
    echo "error: no weight of the run \"$1\": $2" >&2
    return 2
}

all_weights() { # one for each objective, of sum 1, of the weights $1 in a name
    if [[ $1 != *_* ]]; then
        awk -v w="$1" 'BEGIN { print w; print 1 - w }'
    else
        tr _ '\n' <<< "$1" | awk '{ weights[NR] = $1; sum += $1 }
            END { for (i = 1; i <= NR; i++) print (sum - 1)^2 < 1e-18 ? weights[i] : sprintf("%.9g", weights[i] / sum) }'
    fi
}

are_equal() { # the weights $1 in a name
    local weight weights
    check_weights "" "$1" 2> /dev/null || return
    IFS=_ read -ra weights <<< "$1"
    if [ ${#weights[@]} -eq 1 ]; then [[ $1 =~ ^0?\.50*$ ]]; return; fi
    for weight in "${weights[@]}"; do if [ "$weight" != "${weights[0]}" ]; then return 1; fi; done
}

preference() { # NAME=W of every objective, for the weights $1 in a name
    paste -d= <(printf '%s\n' "${OBJECTIVE_NAMES[@]}") <(all_weights "$1") | paste -sd' '
}

# ---- what a run is made of ---------------------------------------------------------------------------------

run_flags() { find_method "$1" && expand_flags "${METHOD_FLAGS[ROW]}"; }

expand_flags() { # $1 of a row, for the run that `find_method` has found
    local word name others expanded=()
    for word in $1; do
        case $word in
            "{scope}") if [ -n "$SCOPE" ]; then expanded+=(--gradient_scope "$SCOPE"); fi ;;
            "{margins}")
                others=$(others_of "${OBJECTIVE_NAMES[0]}")
                if [ -z "$others" ]; then continue; fi
                expanded+=(--monitor $others --margin_model)
                for name in $(experts_of "$RUN"); do
                    if [ "${name%%=*}" != "${OBJECTIVE_NAMES[0]}" ]; then expanded+=("${name/=/=$OUTPUT/policies/}"); fi
                done ;;
            "{tasks}") expanded+=(${TASKS:+--tasks "$TASKS"} ${JUDGES:+--judge $JUDGES}) ;;
            "{preference}") expanded+=("$(preference "$WEIGHTS")") ;;
            "{monitor_others}")
                others=$(others_of "$OBJECTIVE" | paste -sd' ')
                expanded+=(${others:+--monitor $others}) ;;
            *"{cost}"*)
                for name in $(names_of cost); do expanded+=("$(fill_in "${word//"{cost}"/$name}")"); done ;;
            *) expanded+=("$(fill_in "$word")") ;;
        esac
    done
    echo "${expanded[*]}"
}

fill_in() { # word $1: the objective of the name, and variables of the training scripts
    local word=${1//"{objective}"/$OBJECTIVE} variable
    while [[ $word =~ \{([A-Z_]+):-([^{}]*)\} ]]; do
        variable=${BASH_REMATCH[1]}
        word=${word/"${BASH_REMATCH[0]}"/${!variable:-${BASH_REMATCH[2]}}}
    done
    echo "$word"
}

condition_flags() { # of condition $1, for the runs of stage $2
    local row
    if [ -z "$1" ]; then return; fi
    for row in "${!METHOD_RUNS[@]}"; do
        if [ "${METHOD_RUNS[row]}" != "$1" ] || ! [[ ${METHOD_MAKERS[row]} =~ ^(|"$2")$ ]]; then continue; fi
        if [[ ${METHOD_FLAGS[row]} == *"{cost}"* && -z $(names_of cost) ]]; then
            echo "error: no objective for the condition ${1#@}: none is a cost" >&2
            return 2
        fi
        expand_flags "${METHOD_FLAGS[row]}"
        return
    done
    echo "error: no condition of $2 is known as \"${1#@}\" (there is $(shown_conditions ""))" >&2
    return 2
}

shown_conditions() { printf '%s\n' "${METHOD_RUNS[@]}" | sed -n "s/^@/$1/p" | uniq | paste -sd, | sed 's/,/, /g'; }

maker_of() { find_method "$1" && echo "${METHOD_MAKERS[ROW]}"; }

stage_of() { # that trains run $1, or what it is made from
    local source maker
    find_method "$1" || return
    maker=${METHOD_MAKERS[ROW]}
    if ! [ -d "$maker/training_scripts" ]; then
        for source in ${METHOD_SOURCES[ROW]}; do
            if [[ $source == *"{objective}" ]] && match_rows "${source%"{objective}"}${OBJECTIVE_NAMES[0]}" "$1"; then
                maker=${METHOD_MAKERS[ROW]}
            fi
        done
    fi
    echo "$maker"
}

is_own() { [ -n "${METHODS:-}" ] && find_method "$1" && [ "$ROW" -ge "$OWN_ROWS" ]; }

is_on_front() { find_method "$1" && [[ ${METHOD_PLACES[ROW]} == front* ]]; }

sources_of_run() {
    local source expert
    find_method "$1" || return
    for source in ${METHOD_SOURCES[ROW]}; do
        case $source in
            sft) echo sft ;;
            scores) printf '%s\n' "${SCORE_MODELS[@]}" ;;
            *"{objective}") for expert in $(experts_of "$1"); do echo "policies/${expert#*=}"; done ;;
            *) echo "policies/$source${1#"${1%%[@#]*}"}" ;;
        esac
    done
    source=$(warm_start_of "$1")
    if [ -n "$source" ]; then echo "policies/$source"; fi
}

check_warm_start() { # WARM_START is a run, of those that are made or there, and none that starts from it
    if [ -z "${WARM_START:-}" ]; then return; fi
    check_run "$WARM_START" 2> /dev/null || { refuse_variable WARM_START "no run of presets/methods.txt"; return; }
    if [[ $WARM_START == *"#"* ]]; then refuse_variable WARM_START "without a seed: every run starts from that of its own"; return; fi
    if [ -n "$(warm_start_of "$WARM_START")" ]; then refuse_variable WARM_START "a run with tasks, which starts from it"; return; fi
    if [[ " ${RUNS//$'\n'/ } " != *" $WARM_START "* ]] && ! [ -e "$OUTPUT/policies/$WARM_START/config.json" ]; then
        refuse_variable WARM_START "not among RUNS, and not in $OUTPUT/policies"
    fi
}

warm_start_of() { # the policy that run $1 starts from, if it is not the SFT policy
    find_method "$1" || return
    if [ -n "${WARM_START:-}" ] && [[ ${METHOD_FLAGS[ROW]} == *"{tasks}"* ]]; then echo "$WARM_START$(seed_of "$1")"; fi
}

experts_of() { # a condition that names objectives is one of theirs, any other of all
    local source name condition scaled
    find_method "$1" || return
    condition=$(condition_of "$1")
    scaled=" $(condition_flags "$condition" "$(stage_of "$1")")"
    if ! [[ $scaled == *" "[A-Za-z0-9_]*=* ]]; then scaled=$(printf ' %s=' "${OBJECTIVE_NAMES[@]}"); fi
    for source in ${METHOD_SOURCES[ROW]}; do
        if [[ $source != *"{objective}" ]]; then continue; fi
        for name in "${OBJECTIVE_NAMES[@]}"; do
            if [[ $scaled == *" $name="* ]]; then
                echo "$name=${source%"{objective}"}$name$condition$(seed_of "$1")"
            else
                echo "$name=${source%"{objective}"}$name$(seed_of "$1")"
            fi
        done
    done
}
