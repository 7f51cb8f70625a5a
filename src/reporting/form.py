"""The form of `results.json`, to which anybody's is held before anything of it is used."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _has_epoch(row: dict[str, float]) -> dict[str, float]:
    if not float(row.get("epoch", 0.5)).is_integer():
        raise ValueError("no whole number is its epoch")
    return row


Row = Annotated[dict[str, float], AfterValidator(_has_epoch)]
Values = Annotated[list[float], Field(max_length=10_000)]


class Form(BaseModel):
    """What is named must be of its type; what is not may be anything."""

    model_config = ConfigDict(strict=True)


class How(Form):
    """The protocol; a run from before some part of it existed lacks that."""

    space: Literal["embedding", "pooled"]
    metrics: dict[str, Any]
    final: dict[str, Any] | None = None
    query: str
    gallery: str | None = None
    validation: str | None = None
    preset: str | None = None
    labels_used: bool


class Dataset(Form):
    name: str
    limit: int | None = None
    validation: float | None = None


class Trainer(Form):
    max_epochs: int
    precision: str


class Config(Form):
    dataset: Dataset
    trainer: Trainer
    backbone: dict[str, Any]
    method: dict[str, Any]


class Hardware(Form):
    cpu: str
    cores: int
    gpu: str | None = None


class Versions(Form):
    torch: str


class Choices(Form):
    method: str
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]


class Histogram(Form):
    edges: Values
    same: Values
    other: Values

    @model_validator(mode="after")
    def _fits(self) -> "Histogram":
        if not len(self.edges) - 1 == len(self.same) == len(self.other) > 0:
            raise ValueError("its edges are not those of its densities")
        return self


class Picture(Form):
    title: str
    kind: str
    epoch: int
    png: str


class Record(Form):
    """A finished run's results."""

    untrained: Row
    last: Row
    best: Row | None
    history: list[Row]
    monitor: str
    protocol: How
    choices: Choices
    seed: int
    images_per_s: float
    wall_time_s: float
    hardware: Hardware
    versions: Versions
    config: Config
    intervals: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}
    histograms: dict[str, dict[str, Histogram]] = {}
    pictures: list[Picture] = []

    @model_validator(mode="after")
    def _is_monitored(self) -> "Record":
        if self.monitor not in self.last:
            raise ValueError(f"the last epoch has no {self.monitor}, by which the best was chosen")
        return self
