"""Settings of a daemon: one frozen model, filled from flags, environment, a TOML file and defaults, in that order.

Rules of this file:
- Unknown keys are refused wherever they come from: a misspelt setting must not be a silent default.
- A missing file is an error only when it was named; the default place may be empty.
- Errors say the source, the key and what would be right. Pure but for reading the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from garrison.common.errors import ConfigError

__all__ = ["DaemonSettings", "load_settings"]

_T = TypeVar("_T", bound="DaemonSettings")


# What load_settings read from the file, for the settings class under construction: the library makes its sources itself.
_file_values: Final[ContextVar[dict[str, Any] | None]] = ContextVar("file_values", default=None)


class DaemonSettings(BaseSettings):
    """Base of ``MasterSettings`` and ``MinionSettings``: frozen, strict about unknown keys."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first: flags, environment, file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=_file_values.get() or {})


def load_settings(model: type[_T], *, file: Path | None, default_file: Path, flags: Mapping[str, Any]) -> _T:
    """Return the settings of a daemon.

    Args:
        model: The settings' class; its ``env_prefix`` names the environment variables.
        file: TOML file that the user named; ``None`` for ``default_file``, which need not exist.
        default_file: The usual place.
        flags: Values from the command line; ``None`` counts as not given.

    Raises:
        ConfigError: A file that cannot be read or parsed, an unknown key, a wrong value.
    """
    _refuse_unknown_environment(model)
    token = _file_values.set(_read(file, default_file))
    try:
        return model(**{key: value for key, value in flags.items() if value is not None})
    except (ValidationError, SettingsError) as err:
        raise ConfigError(
            _first_problem(err),
            hint=f"look in {file or default_file}, the environment ({model.model_config['env_prefix']}*) and the flags",
        ) from None
    finally:
        _file_values.reset(token)


def _first_problem(err: ValidationError | SettingsError) -> str:
    if isinstance(err, SettingsError):
        return str(err)
    first = err.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        return f"{key} is no setting"
    return f"setting {key} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _read(file: Path | None, default_file: Path) -> dict[str, Any]:
    path = file or default_file
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        if file is None:
            return {}
        raise ConfigError(f"{path}: no such file", hint="name an existing file with --config, or leave the flag out") from err
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise ConfigError(f"{path} cannot be read as TOML: {err}") from None


def _refuse_unknown_environment(model: type[DaemonSettings]) -> None:
    # pydantic-settings passes over unknown variables; a typo such as GARRISON_MINION_NOED would then go unseen.
    prefix = str(model.model_config["env_prefix"])
    known = {f"{prefix}{name}".upper() for name in model.model_fields}
    for name in os.environ:
        if name.upper().startswith(prefix.upper()) and name.upper().split("__")[0] not in known:
            raise ConfigError(
                f"environment variable {name} is no setting",
                hint=f"the settings are {', '.join(sorted(known))}",
            )
