"""Secrets do not leave a command line; the rest of it does."""

import pytest

from garrison.common.events import Actor, Event, Kind, Lane, encode_event
from garrison.minion.observers.redact import REDACTED, redact
from garrison.minion.observers.shell import fit, in_scope

SECRET = "hunter2hunter2"  # noqa: S105


@pytest.mark.parametrize(
    "args",
    [
        ("app", f"--password={SECRET}"),
        ("app", "--password", SECRET),
        ("app", f"--db-password={SECRET}"),
        ("app", "--api-key", SECRET),
        ("env", f"DB_PASSWORD={SECRET}", "app"),
        ("env", f"AWS_SECRET_ACCESS_KEY={SECRET}", "app"),
        ("/usr/bin/mysql", "-u", "root", f"-p{SECRET}"),
        ("sshpass", "-p", SECRET, "ssh", "edge"),
        ("redis-cli", "-a", SECRET),
        ("curl", "-H", f"Authorization: Bearer {SECRET}"),
        ("curl", "-u", f"me:{SECRET}", "http://x.example"),
        ("psql", f"postgres://me:{SECRET}@db/x"),
        ("bash", "-c", f"mysql --password={SECRET} -e 'select 1'"),
    ],
)
def test_secret_is_gone_and_counted(args):
    clean, count = redact(args)

    assert SECRET not in "".join(clean)
    assert REDACTED in "".join(clean)
    assert count >= 1
    assert clean[0] == args[0]


@pytest.mark.parametrize(
    "token", ["AKIA" + "ABCDEFGH12345678", "ghp_" + "a" * 36, "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln", "xoxb-" + "1" * 12]
)
def test_known_tokens_are_gone_wherever_they_stand(token):
    clean, count = redact(("sh", "-c", f"echo {token} | true"))

    assert (clean, count) == (("sh", "-c", f"echo {REDACTED} | true"), 1)


@pytest.mark.parametrize(
    "args",
    [
        ("/usr/bin/id", "-u", "root"),
        ("ls", "-p", "/tmp"),
        ("cp", "-p", "a", "b"),
        ("cat", "/etc/passwd"),
        ("ssh", "-p", "2222", "edge"),
        ("passwd", "root"),
        ("mysql", "-p"),
        (),
    ],
)
def test_ordinary_commands_are_left_alone(args):
    assert redact(args) == (args, 0)


def test_scope_login_takes_logins_and_terminals_only():
    assert not in_scope(Actor(pid=1), "login")
    assert in_scope(Actor(auid=0), "login")
    assert in_scope(Actor(tty="pts/0"), "login")
    assert in_scope(Actor(pid=1), "all")


def test_event_with_the_longest_arguments_is_cut_until_it_fits():
    event = Event(
        lane=Lane.SHELL, kind=Kind.EXEC, actor=Actor(exe="/x", args=("\N{EURO SIGN}" * 512,) * 64, cwd="/" + "d" * 4000)
    )

    fitted = fit(event)

    encode_event(fitted)
    assert fitted.actor.args[-1] == "[...]"
    assert len(fitted.actor.args) > 1
