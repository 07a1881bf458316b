"""API keys: who may ask, for whom, how much. Of a key's secret only its SHA-256 is kept.

A token is ``fsk_<id>_<secret>``. The id is public; the secret is 32 random bytes, so that a plain digest of it can be
neither guessed nor looked up: a slow hash, which protects what people choose, would protect nothing more here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import StoreError
from featurespeed_service.store.schema import api_keys

Scope = Literal["jobs:read", "jobs:write", "metrics:read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
JOB_SCOPES: tuple[Scope, ...] = ("jobs:read", "jobs:write")

SECRET_BYTES = 32
_TOKEN = re.compile(r"fsk_([A-Za-z0-9]{1,32})_([A-Za-z0-9]{32,128})")


class KeyNotFound(StoreError):
    """No key has this id."""


class InvalidToken(StoreError):
    """The text is no token ``fsk_<id>_<secret>``; never says the text."""


class KeyExists(StoreError):
    """The id of the token is taken by a key with another secret."""


@dataclass(frozen=True)
class Grant:
    """What a key allows: the tenant whose jobs it reaches, what may be done, how many and how often (``None``: any)."""

    tenant: str
    scopes: tuple[Scope, ...] = JOB_SCOPES
    max_active_jobs: int | None = None  # queued and running ones of the tenant
    requests_per_minute: int | None = None  # of this key


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored; times are microseconds since 1970."""

    id: str
    name: str
    grant: Grant
    sha256: str
    created_at: int
    revoked_at: int | None

    def opens_with(self, secret: str) -> bool:
        """Whether the key is not revoked and this is its secret; takes as long whatever the secret is."""
        return hmac.compare_digest(self.sha256, _digest(secret)) and self.revoked_at is None


def parse_token(token: str) -> tuple[str, str]:
    """Id and secret of a token; raises InvalidToken."""
    if not (found := _TOKEN.fullmatch(token)):
        bound = "a key is fsk_<id>_<secret>: letters and digits, 1 to 32 in the id and 32 to 128 in the secret"
        raise InvalidToken(bound)
    return found[1], found[2]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyStore:
    """The API keys in a database. Safe to call from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, grant: Grant) -> tuple[ApiKey, str]:
        """A new key, and its token, which cannot be had again."""
        key_id, secret = secrets.token_hex(8), secrets.token_hex(SECRET_BYTES)
        return self._insert(key_id, secret, name, grant), f"fsk_{key_id}_{secret}"

    def ensure(self, token: str, name: str, grant: Grant) -> ApiKey:
        """The key of a token that is given from outside, made if it is not there; raises InvalidToken, KeyExists.

        One that was revoked stays revoked.
        """
        key_id, secret = parse_token(token)
        found = self.find(key_id)
        try:
            found = found or self._insert(key_id, secret, name, grant)
        except IntegrityError:  # another process was first
            found = self.find(key_id)
        if found is None or not hmac.compare_digest(found.sha256, _digest(secret)):
            raise KeyExists(f"the key id {key_id} is taken by a key with another secret; choose another id")
        return found

    def _insert(self, key_id: str, secret: str, name: str, grant: Grant) -> ApiKey:
        values = {
            "id": key_id,
            "name": name,
            "sha256": _digest(secret),
            "tenant": grant.tenant,
            "scopes": " ".join(grant.scopes),
            "max_active_jobs": grant.max_active_jobs,
            "requests_per_minute": grant.requests_per_minute,
            "created_at": self._database.clock(),
        }
        with self._database.writing() as connection:
            connection.execute(insert(api_keys).values(values))
        key = self.find(key_id)
        assert key is not None
        return key

    def find(self, key_id: str) -> ApiKey | None:
        """The key of that id, revoked or not."""
        with self._database.reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).mappings().one_or_none()
        return None if row is None else _to_key(row)

    def all(self) -> Sequence[ApiKey]:
        """Every key, oldest first, revoked ones too."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        with self._database.reading() as connection:
            return [_to_key(row) for row in connection.execute(query).mappings()]

    def any_active(self) -> bool:
        """Whether some key is not revoked."""
        query = select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None)).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).one_or_none() is not None

    def revoke(self, key_id: str) -> ApiKey:
        """Let the key open nothing any more; raises KeyNotFound. One that is revoked already stays as it is."""
        now = self._database.clock()
        active = (api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with self._database.writing() as connection:
            connection.execute(update(api_keys).where(*active).values(revoked_at=now))
        if (key := self.find(key_id)) is None:
            raise KeyNotFound(f"no key has the id {key_id!r}")
        return key


def _to_key(row: RowMapping) -> ApiKey:
    grant = Grant(row["tenant"], _known(row["scopes"].split()), row["max_active_jobs"], row["requests_per_minute"])
    return ApiKey(row["id"], row["name"], grant, row["sha256"], row["created_at"], row["revoked_at"])


def _known(names: Collection[str]) -> tuple[Scope, ...]:
    return tuple(scope for scope in SCOPES if scope in names)
