# Sourced by <preset>_policy.sh: METHOD_FLAGS for the name of a run, the objectives being helpfulness and harmlessness.
#
#   ppo_helpfulness  ppo_harmlessness   one objective; the other is scored and logged
#   morlhf_W  p_gapo_W                  weight or preference W for helpfulness, 1 - W for harmlessness
#   mgda  gapo_p1  gapo_p2

RUN=${1:?usage: bash $0 RUN (ppo_helpfulness, ppo_harmlessness, morlhf_0.5, mgda, gapo_p1, gapo_p2, p_gapo_0.2, ...)}

preference() { # helpfulness=$1 and the rest
    echo "helpfulness=$1 harmlessness=$(awk -v w="$1" 'BEGIN { print 1 - w }')"
}

case $RUN in
    ppo_helpfulness) METHOD_FLAGS="--algorithm ppo --monitor harmlessness" ;;
    ppo_harmlessness) METHOD_FLAGS="--algorithm ppo --monitor helpfulness" ;;
    morlhf_*) METHOD_FLAGS="--algorithm morlhf --preference $(preference "${RUN#morlhf_}")" ;;
    mgda) METHOD_FLAGS="--algorithm mgda" ;;
    gapo_p2) METHOD_FLAGS="--algorithm gapo --rescale_power 2 --normalize_coefficients" ;;
    gapo_p*) METHOD_FLAGS="--algorithm gapo --rescale_power ${RUN#gapo_p}" ;;
    p_gapo_*) METHOD_FLAGS="--algorithm p_gapo --preference $(preference "${RUN#p_gapo_}")" ;;
    *) echo "error: no method is known for the run $RUN" >&2; exit 2 ;;
esac
