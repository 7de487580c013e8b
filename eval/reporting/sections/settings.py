"""What the policies were trained with."""

from typing import Any

from eval.reporting.blocks import PAGE, Html, Report, Section, Text, fill
from eval.results.runs import Run, show_setting

PLACE = 120
MOST_OPEN = 12  # rows of a table that is not folded away
TABLES = """
{% macro pairs(values) %}
<table class="settings pairs">
{% for key, value in values.items() %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>{% endfor %}
</table>
{% endmacro %}
{% if rows and differing %}
<details{{ " open" if rows|length <= most_open }}>
<summary>what differs between the aligned policies ({{ differing|length }} settings)</summary>
<div class="scroll"><table class="settings">
  <thead><tr><th>run</th>{% for key in differing %}<th>{{ key }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for run, values in rows %}
    <tr><td>{{ run.name.text }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
</details>
{% endif %}
{% if shared %}
<details><summary>the same in all aligned policies ({{ shared|length }} settings)</summary>
{{ pairs(shared) }}
</details>
{% endif %}
{% for run, values in others %}
<details><summary>{{ run.name.label }} ({{ values|length }} settings)</summary>
{{ pairs(values) }}
</details>
{% endfor %}
"""


def make(report: Report) -> Section:
    settings = split_settings(report.groups)
    block = Html(fill(TABLES, **settings, most_open=MOST_OPEN), only=PAGE)
    if not settings["rows"] and not settings["others"]:
        block = Text(["No run left its settings (args.json)."], note=True, only=PAGE)
    return Section("Settings", "Settings", [block])


def split_settings(runs: list[Run]) -> dict[str, Any]:
    """Training settings for the report: what all aligned policies share, and a table of what differs.

    Runs of other stages (no 'algorithm' among their settings) have other flags and are listed on their own.
    """
    trained = [run for run in runs if "algorithm" in run.args]
    keys = list(dict.fromkeys(key for run in trained for key in run.args if key != "output_dir"))
    shared = [key for key in keys if all(run.args.get(key) == trained[0].args.get(key) for run in trained)]
    differing = [key for key in keys if key not in shared]
    return {
        "shared": {key: show_setting(trained[0].args[key]) for key in shared},
        "differing": differing,
        "rows": [(run, [show_setting(run.args.get(key)) for key in differing]) for run in trained],
        "others": [
            (run, {key: show_setting(value) for key, value in run.args.items()})
            for run in runs
            if run.args and "algorithm" not in run.args
        ],
    }
