"""What every client is asked to do. The demo model has no sense, so schemas name what may come."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "shoal-demo"
SYSTEM = "You are a helpful assistant that translates English to Spanish."
HELLO = "I love music."
TOO_LONG = "I love music. " * 4000


class Fish(BaseModel):
    """A fish. Closed, as a model without sense would go on adding properties."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["trout", "eel"]
    weight: int = Field(ge=0, le=99)


def get_weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}
