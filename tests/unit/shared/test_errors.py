# SPDX-License-Identifier: Apache-2.0
"""Errors with codes: what each way to a user prints, and what keeps the code."""

import json
import logging
import pickle

import pytest

from vhostpci_shared import log_options
from vhostpci_shared.errors import BadValue, Coded, Said, code_of, said, told
from vhostpci_shared.wire import ProtocolError

WHY = ProtocolError("it broke the rules", code="P999")


def line(form: str | None, *args: object, dated: bool = False) -> str:
    """Return the line of a record with these arguments."""
    text = ": ".join(["%s"] * len(args))
    record = logging.LogRecord("source", logging.WARNING, "", 0, text, args, None)
    return log_options.make(form, "program", dated=dated).format(record)


@pytest.mark.parametrize("why", [WHY, said(WHY)], ids=["error", "its text"])
def test_line_of_the_log_ends_with_the_code_of_its_error(why: object) -> None:
    assert line("text", "web", why) == "program: web: it broke the rules [P999]"
    assert line("journal", "web", why) == "<4>web: it broke the rules [P999]"
    assert line("text", "web", why, dated=True).endswith(
        " W web: it broke the rules [P999]"
    )


@pytest.mark.parametrize("why", [WHY, said(WHY)], ids=["error", "its text"])
def test_json_log_has_the_code_beside_the_message(why: object) -> None:
    found = json.loads(line("json", "web", why))
    assert found["message"] == "web: it broke the rules"
    assert found["code"] == "P999"


def test_line_without_an_error_has_no_code() -> None:
    assert line("text", "web", OSError("no")) == "program: web: no"
    assert line("text", Coded("no code")) == "program: no code"
    assert "code" not in json.loads(line("json", "web"))


def test_error_line_of_a_program_ends_with_the_code() -> None:
    words = ["run"]
    assert log_options.error_line(words, "p", WHY) == "p: it broke the rules [P999]"
    words = ["--log-format", "json"]
    assert json.loads(log_options.error_line(words, "p", WHY))["code"] == "P999"


def test_text_of_an_error_is_without_its_code() -> None:
    assert str(WHY) == said(WHY) == "it broke the rules"
    assert told(WHY) == told(said(WHY)) == "it broke the rules [P999]"


def test_value_of_an_option_is_a_value_error_with_a_code() -> None:
    with pytest.raises(ValueError, match="no number") as error:
        raise BadValue("no number", code="G999")
    assert code_of(error.value) == "G999"


def test_code_survives_pickling() -> None:
    assert code_of(pickle.loads(pickle.dumps(WHY))) == "P999"
    assert code_of(pickle.loads(pickle.dumps(Said("text", "P999")))) == "P999"
