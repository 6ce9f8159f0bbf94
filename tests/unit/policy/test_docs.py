"""The reference names everything that can be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from garrison.cli.policy import command
from garrison.common import limits
from garrison.common.policy import models

DOC = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()


def written_names():
    for model in vars(models).values():
        if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel:
            for name, field in model.model_fields.items():
                yield field.alias or name


@pytest.mark.parametrize("name", sorted(set(written_names())))
def test_every_key_that_can_be_written_is_in_the_reference(name):
    assert re.search(rf"`[^`\n]*\b{re.escape(name)}\b[^`\n]*`", DOC) or f"\n{name}:" in DOC


@pytest.mark.parametrize("name", models.PROTOCOLS)
def test_every_protocol_is_in_the_reference(name):
    assert f"`{name}`" in DOC


def test_limits_in_the_reference_are_those_of_the_code():
    assert f"At most {limits.GLOB_STARS_MAX} stars and {limits.GLOB_ALTERNATIVES_MAX} alternatives" in DOC
    assert f"at most {limits.ALLOWED_ARGS_MAX}." in DOC


@pytest.mark.parametrize("verb", sorted(command.commands))
def test_every_verb_is_in_the_reference(verb):
    assert f"garrison policy {verb}" in DOC
