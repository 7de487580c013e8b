"""How to read the page."""

from eval.reporting.blocks import PAGE, Mark, Report, Section, Text
from eval.reporting.units import harmless_title

PLACE = 130


def make(report: Report) -> Section:
    harmless = harmless_title(report.runs)
    paragraphs = [
        [
            "Every policy starts from the same supervised model and answers the same test prompts once. ",
            Mark("Model scores", "strong"),
            " come from the reward and cost models it was trained against; a cost enters with its sign changed, so ",
            Mark("higher is better in every objective", "strong"),
            ". ",
            *([Mark(harmless, "em"), " is the share of responses with a negative cost, "] if harmless else []),
            Mark("average", "em"),
            f" {'' if harmless else 'is '}the mean of the objectives' means.",
        ],
        [
            Mark("KL", "em"),
            " is the divergence from the reference policy in nats a response, summed over its tokens: how far training"
            " moved. ",
            Mark("length", "em"),
            " counts tokens, the end of text included. What stands behind ± is said below each table; intervals over"
            " prompts do not cover the luck of the training seed.",
        ],
    ]
    if report.has_gold:
        gold = (
            " grade the text by fixed rules that no policy ever saw. When a model score rises and its gold score does"
            " not, the policy has learned to please the model, not to do the task."
        )
        paragraphs.insert(1, [Mark("Gold scores", "strong"), gold])
    if len(report.objectives) > 1:
        paragraphs.append(
            [
                "In the plot, one policy dominates another when it lies above and to the right. An optimizer for one"
                " objective alone marks an end of the trade-off; a good multi-objective method lies beyond the line"
                " between those ends."
            ]
        )
    return Section("How to read this", "How to read this", [Text(words, only=PAGE) for words in paragraphs])
