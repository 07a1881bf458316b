"""Whether the service may be started on an address: beyond this machine only with API keys."""

from __future__ import annotations

from ipaddress import ip_address

from featurespeed_service.opening import CannotStart
from featurespeed_service.settings import Settings
from featurespeed_service.store.keys import SCOPES, Grant, InvalidToken, KeyExists, KeyStore


def guarded(settings: Settings, address: str, keys: KeyStore) -> Settings:
    """The settings for listening on ``address`` (as the socket has it), with ``require_keys`` decided.

    Makes the bootstrap key. Raises CannotStart.
    """
    loopback = ip_address(address.partition("%")[0]).is_loopback
    _make_bootstrap_key(settings, keys)
    required = not loopback if settings.require_keys is None else settings.require_keys
    if not loopback and not required:
        raise CannotStart(
            f"listening on {address} without API keys would let everybody in: leave FEATURESPEED_REQUIRE_KEYS unset"
        )
    if required and not loopback and not keys.any_active():
        raise CannotStart(f"there is no API key, which listening on {address} needs: featurespeed keys create NAME")
    return settings.model_copy(update={"require_keys": required})


def _make_bootstrap_key(settings: Settings, keys: KeyStore) -> None:
    token, source = settings.bootstrap_key, "FEATURESPEED_BOOTSTRAP_KEY"
    text = None if token is None else token.get_secret_value()
    if settings.bootstrap_key_file is not None:
        if text is not None:
            raise CannotStart(f"{source} and {source}_FILE exclude each other")
        source += "_FILE"
        try:
            text = settings.bootstrap_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CannotStart(f"{source}: {getattr(error, 'strerror', None) or 'is no UTF-8 text'}") from None
    if text is not None:
        try:
            keys.ensure(text, "bootstrap", Grant(settings.bootstrap_tenant, SCOPES))
        except (InvalidToken, KeyExists) as error:
            raise CannotStart(f"{source}: {error}") from None
