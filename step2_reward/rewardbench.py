"""RewardBench (Lambert et al. 2024, arXiv:2403.13787): the sections of its subsets, and how much each counts there.

The numbers are `EXAMPLE_COUNTS` and `SUBSET_MAPPING` of rewardbench/constants.py in github.com/allenai/reward-bench: a
section is the average of its subsets weighted by them, the score is the mean of the sections. math-prm has 447 pairs
and counts as much as all code. Ties count half here; there they are mistakes.
"""

SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}  # {section: {subset: examples that it counts as}}
ORDER = [subset for counts in SECTIONS.values() for subset in counts]
