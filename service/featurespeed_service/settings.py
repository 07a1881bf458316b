"""Settings: everything about the service that an operator may choose, read from ``FEATURESPEED_*``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import make_url

from featurespeed.budget import Budget

PREFIX = "FEATURESPEED_"
MIB = 2**20
DAY_SECONDS = 24 * 3600
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
"""What the name of a tenant or of an API key may be."""

OF_THE_API = frozenset({"bootstrap_key", "bootstrap_key_file"})
"""Settings that no other process is to know."""


class Settings(BaseModel):
    """Settings of API, store and dispatcher; each field is the environment variable ``FEATURESPEED_<NAME>``.

    Raises pydantic's ValidationError where a value is out of bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Path("featurespeed-data")
    """Directory of the SQLite file, and of uploads until they are checked."""
    database: str | None = None
    """SQLAlchemy URL; ``None`` is SQLite in ``data_dir``."""
    database_password_file: Path | None = None
    """File with the password that belongs into ``database``."""

    require_keys: bool | None = None
    """Whether requests need an API key; ``None``: exactly if the service listens on more than this machine."""
    bootstrap_key: SecretStr | None = None
    """A whole token ``fsk_<id>_<secret>``, whose key is made at the start unless it is there."""
    bootstrap_key_file: Path | None = None
    """A file with such a token, in place of ``bootstrap_key``."""
    bootstrap_tenant: Annotated[str, Field(pattern=f"^{NAME.pattern}$")] = "admin"
    """The tenant of the bootstrap key, which has every scope."""
    body_seconds: Annotated[float, Field(gt=0)] = 20.0
    """How long the body of a specification may take to arrive; that of a dataset has more, by its largest size."""

    max_spec_bytes: Annotated[int, Field(ge=1)] = MIB
    max_dataset_bytes: Annotated[int, Field(ge=1)] = 256 * MIB
    max_parameters: Annotated[int, Field(ge=1)] = Budget().max_parameters
    max_memory_bytes: Annotated[int, Field(ge=1)] = Budget().max_memory_bytes
    """The budget of a spec, estimated before anything is built; memory is that of one cell."""

    lease_seconds: Annotated[float, Field(gt=0)] = 15.0
    """A dispatcher that has not renewed its lease for so long is taken for dead."""
    max_attempts: Annotated[int, Field(ge=1)] = 5
    """A job that was started so often in a row without finishing a cell, its dispatcher dying each time, fails."""
    max_crashes: Annotated[int, Field(ge=1)] = 3
    """A job of which one cell's worker has crashed so often fails."""
    cancel_grace_seconds: Annotated[float, Field(ge=0)] = 2.0
    """How long a cancelled cell may take to stop by itself before its process is ended."""

    retention_days: Annotated[float, Field(ge=0, le=36_500)] = 90.0
    """Jobs, with their reports, are deleted so long after their end; 0 keeps them for ever."""

    ray_address: str | None = None
    """Address of a Ray cluster; ``None`` starts a local Ray that ends with the dispatcher."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs of the local Ray; ``None`` is all of the machine."""
    threads: Annotated[int, Field(ge=1)] = 1
    """torch threads of a cell. Part of what makes numbers repeat to the last bit."""
    gpus_per_cell: Annotated[float, Field(ge=0)] | None = None
    """GPU share of a cell where the cluster has GPUs; ``None`` by its estimated memory, 0 computes on the CPU."""
    gpu_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory of one GPU of the cluster; ``None`` asks the workers at the start."""
    autoscaling: bool = False
    """Whether nodes come when cells wait for them."""
    max_pending_cells: Annotated[int, Field(ge=1)] = 64
    """Cells beyond its size that an autoscaling cluster is given, so that it sees the demand."""
    node_wait_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long cells that no node can hold wait for one, without autoscaling, before their job fails."""
    object_store_bytes: Annotated[int, Field(ge=75 * MIB)] = 128 * MIB
    """Memory of the local Ray for what cells are given; a dataset beyond it goes through the disk."""
    dataset_cache_bytes: Annotated[int, Field(ge=1)] = 1024 * MIB
    """Datasets that each node keeps on its disk between cells."""
    engine: str = "featurespeed_workers.stages"
    """Module that is an Engine (``stages.py`` of the workers); tests put a slow or crashing one here."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """``auto`` is ``console`` where standard error is a terminal, else ``json``: an object a line."""
    log_level: Literal["auto", "debug", "info", "warning", "error"] = "auto"
    """``auto`` is ``warning`` at a terminal, else ``info``, with a line for each request and attempt."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^/\s]+\S*$")] | None = None
    """Address of a collector of traces, OTLP over HTTP; ``None`` is what OTEL_EXPORTER_OTLP_ENDPOINT says."""

    @property
    def database_url(self) -> str:
        """The URL of the database, with default and password filled in; raises OSError for the password's file."""
        url = self.database or f"sqlite:///{self.data_dir / 'featurespeed.sqlite3'}"
        if self.database_password_file is None:
            return url
        password = self.database_password_file.read_text().strip()
        return make_url(url).set(password=password).render_as_string(hide_password=False)

    @property
    def datasets_dir(self) -> Path:
        """Directory of uploads until they are checked; the database has the others."""
        return self.data_dir / "datasets"

    @property
    def budget(self) -> Budget:
        """The largest network that a spec may ask for."""
        return Budget(max_parameters=self.max_parameters, max_memory_bytes=self.max_memory_bytes)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings in the environment; unset or empty variables keep their defaults."""
        given = {name: environment.get(f"{PREFIX}{name.upper()}") for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in given.items() if value})

    def environment(self) -> dict[str, str]:
        """The variables from which :meth:`from_environment` makes these settings again, but for OF_THE_API."""
        chosen = self.model_dump(mode="json", exclude_none=True, exclude=set(OF_THE_API))
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in chosen.items()}

    def environment_of_child(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of a process that works under these settings: ours, without what OF_THE_API names."""
        kept_back = {f"{PREFIX}{name.upper()}" for name in OF_THE_API}
        return {**{name: value for name, value in inherited.items() if name not in kept_back}, **self.environment()}
