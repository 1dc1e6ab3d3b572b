"""What the report says of the families of claims that a sweep was made for."""

from collections.abc import Mapping

import pandas as pd

from analysis.factorial import families
from analysis.report.tables import Shown, shown
from engine.fields.claims import Family


def tables(frame: pd.DataFrame, wanted: Mapping[str, Family]) -> list[Shown]:
    """A table for each family; none while no run has finished."""
    if frame["acc1"].isna().all():
        return []
    return [shown(f"family-{place}", sheet) for place, sheet in enumerate(families.sheets(frame, wanted))]
