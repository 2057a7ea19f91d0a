"""The rules of what channels keep: how they are written, and which one counts."""

import re

import pytest

from trisync.config import ConfigError, load_settings
from trisync.retention_rules import Limits, Rules
from trisync.settings import Settings


def test_a_rule_is_a_pattern_and_limits() -> None:
    rules = Rules(["chat.* messages=1000  age_s=60 bytes=5"])
    assert rules.limits("chat.a") == Limits(messages=1000, age_ms=60_000, bytes=5)
    assert rules.limits("chat") is None


def test_of_several_rules_the_first_that_matches_counts() -> None:
    rules = Rules(["chat.vip messages=9", "chat.* messages=1", "* age_s=2"])
    assert rules.limits("chat.vip") == Limits(messages=9)
    assert rules.limits("chat.other") == Limits(messages=1)
    assert rules.limits("else") == Limits(age_ms=2000)


def test_only_a_rule_with_an_age_makes_time_count_and_only_the_others_a_publish() -> None:
    assert not Rules(["* messages=1"]).by_age
    rules = Rules(["old.* age_s=1", "* bytes=1"])
    assert rules.by_age
    assert rules.outgrown("any")
    assert not rules.outgrown("old.any")
    assert not Rules([]).outgrown("any")


@pytest.mark.parametrize(
    "text",
    [
        *("", "chat.*", "messages=1", "chat.* messages", "chat.* messages=", "chat.* messages=0", "chat.* messages=-1"),
        *("chat.* messages=1.5", "chat.* messages=x", "chat.* messages=1 messages=2", "chat.* days=1"),
        *("ch,at messages=1", "é messages=1", "chat.* messages=٣", "chat.* bytes=9007199254740992", "$a messages=1"),
    ],
)
def test_what_is_no_rule_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"rule|pattern|number|each once"):
        Rules([text])
    with pytest.raises(ValueError, match="retention"):
        Settings(retention=[text])


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("*", "a"), ("*", "*"), ("chat.*", "chat.vip"), ("chat.*", "chat.*.vip"), ("*.vip", "chat*.vip"), ("a", "a")],
)
def test_a_rule_that_could_never_count_is_refused(earlier: str, later: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"'{later} messages=9': never used, as '{earlier} messages=1'")):
        Rules([f"{earlier} messages=1", f"{later} messages=9"])


@pytest.mark.parametrize(("earlier", "later"), [("a", "*"), ("chat.vip", "chat.*"), ("a*b", "a*"), ("a*", "*a")])
def test_a_rule_that_counts_for_some_channels_is_one(earlier: str, later: str) -> None:
    assert Rules([f"{earlier} messages=1", f"{later} messages=9"])


def test_a_wrong_rule_is_a_wrong_setting_from_each_source() -> None:
    with pytest.raises(ConfigError, match=r"the command line: .*retention.*days"):
        load_settings({"retention": ["* days=1"]}, {})
    with pytest.raises(ConfigError, match=r"the environment: .*retention"):
        load_settings({}, {"TRISYNC_RETENTION": "* messages=1, *"})
    assert load_settings({}, {"TRISYNC_RETENTION": "a messages=1, * bytes=2"}).retention == [
        "a messages=1",
        "* bytes=2",
    ]
