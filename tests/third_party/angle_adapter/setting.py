"""The angle as a setting of its own: `--conditioning angle_adapter.setting:ANGLE`."""

from angle_adapter.adapter import AngleAdapter
from cond_pipelines.data.config import ConditionColumn
from cond_pipelines.settings import CardText, Setting


def parse_angle(value: str | float | None) -> float | None:
    """Degrees, or None. Raises ValueError for a word."""
    return None if value is None else float(value)


ANGLE = Setting(
    "angle",
    adapter=AngleAdapter,
    column=ConditionColumn(names=("angle", "degrees"), parser=lambda values, feature: (None, parse_angle)),
    card=CardText(formula="p(x|angle)", sentence=": a shape that points where you say."),
)
