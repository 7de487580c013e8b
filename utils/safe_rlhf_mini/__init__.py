"""SafeRLHF-mini, the embedded benchmark. Only what generates and grades its corpus may enter.

A generated corpus in PKU-SafeRLHF's schema, with gold scores.
To a risky prompt an answer can comply (helpful, harmful), refuse flatly (harmless, useless) or refuse and
offer a safe alternative (good at both, rare), so the two objectives conflict and there is a trade-off to be
found.
"""

from utils.safe_rlhf_mini.attributes import gold_attributes, gold_overall
from utils.safe_rlhf_mini.gold import gold_scores

__all__ = ["gold_attributes", "gold_overall", "gold_scores"]
