"""`regen evaluate`: measures models on clips."""

from dataclasses import dataclass

from regen.cli.output import print_table
from regen.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class Evaluate(EvaluateConfig):
    """Measure REGEN models, other embedders and codecs on clips: results.json and report.html.

    Example: regen evaluate --data clips --model natural --steps 1 8 --output runs/evaluation
    """

    def run(self) -> None:
        self.check()
        from regen.evaluation.evaluate import evaluate, summary_rows

        print_table(summary_rows(self, evaluate(self)))
