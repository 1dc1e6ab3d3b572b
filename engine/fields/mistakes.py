"""What Run and How have in common: a mistake in their fields is one line, to a command and in Python alike."""

from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import Refusal
from engine.fields.values import unknown


class Fields(BaseModel):
    """Fields by name. Raises Refusal with one line that names the field and, for a misspelling, ours."""

    def __init__(self, **fields: Any) -> None:
        for key in fields:
            if key not in type(self).model_fields:
                raise Refusal(unknown("key", key, type(self).model_fields))
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise Refusal(_line(error, fields)) from None


def _line(error: ValidationError, fields: dict[str, Any]) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][:1])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place} {fields.get(place)!r}: {message[0].lower()}{message[1:]}" if place else message
