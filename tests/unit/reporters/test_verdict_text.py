"""Verdicts in words: each sentence, in singular and plural, never surer than its figures; and the next command."""

from __future__ import annotations

import dataclasses

import pytest

from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.analysis.verdict.memory import HighWater
from tracer.reporters.verdict_text import Source, evidence, label, next_step, shown_targets

MIB = 1 << 20
LEAK = Verdict(
    Kind.LEAK, requests=132, kept=3_700_000, per_request=28_030.3, low=28_030.3, high=28_030.3, share=1 / 3,
    per_hour=185_000_000.0, workers=4, agree=4,
)  # fmt: skip


def unclear(why: Why, **figures: object) -> Verdict:
    return dataclasses.replace(LEAK, kind=Kind.UNCLEAR, why=why, **figures)


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (LEAK, "keeps 27.4 KiB a request (33 % of them keep any, 4 of 4 workers): 176 MiB an hour"),
        (
            dataclasses.replace(LEAK, share=1.0, workers=1, agree=1, per_hour=None, requests=40),
            "keeps 27.4 KiB a request (1 of 1 worker): 3.5 MiB in 40 requests",
        ),
        (
            dataclasses.replace(LEAK, estimated=True, share=None, low=20_000.0, high=40_000.0),
            "keeps about 27.4 KiB a request, by an estimate (19.5 KiB to 39.1 KiB, 4 of 4 workers): 176 MiB an hour",
        ),
        (
            dataclasses.replace(LEAK, share=0.0004),
            "keeps 27.4 KiB a request (0.04 % of them keep any, 4 of 4 workers): 176 MiB an hour",
        ),
        (
            Verdict(Kind.WARM_UP, kept=7 * MIB, workers=4, late=0.0),
            "kept 7.0 MiB in the first requests of 4 workers, and then no more",
        ),
        (
            Verdict(Kind.WARM_UP, kept=7 * MIB, workers=1, late=51.2),
            "kept 7.0 MiB in the first requests of 1 worker, and 51 B a request in the end",
        ),
        (
            Verdict(Kind.WARM_UP, kept=7 * MIB, early=13_000.0, late=800.0, fades=True),
            "keeps less and less: 12.7 KiB a request in the beginning, 800 B in the end, 7.0 MiB in all",
        ),
        (
            Verdict(Kind.HIGH_WATER, kept=0, high_water=HighWater(4, 64 * MIB, 29 * MIB, 93 * MIB, 256 * MIB)),
            "raised 4 workers, one of them from 29.0 MiB to 93.0 MiB, and they stayed there: free memory that malloc"
            " keeps, not a leak",
        ),
        (
            Verdict(Kind.HIGH_WATER, high_water=HighWater(1, 64 * MIB, 29 * MIB, 93 * MIB, 64 * MIB)),
            "raised 1 worker from 29.0 MiB to 93.0 MiB, and it stayed there",
        ),
        (Verdict(Kind.CHURN, needs=65 * MIB), "needs up to 65.0 MiB a request, and gives it back"),
        (
            Verdict(Kind.CACHE, shared=88 * MIB, workers=1),
            "added 88.0 MiB of files and shared memory to 1 worker, where each counts what all share: opcache or APCu,"
            " for example",
        ),
        (Verdict(Kind.STEADY, kept=0, requests=1), "kept nothing in 1 request"),
        (Verdict(Kind.STEADY, kept=1_200, requests=1_009), "kept 1.2 KiB in 1,009 requests"),
        (Verdict(Kind.STEADY, requests=17), "17 requests, and the workers did not grow"),
        (
            Verdict(Kind.STEADY, requests=400, estimated=True, high=775.0),
            "keeps at most 775 B a request, by an estimate of 400 requests",
        ),
        (unclear(Why.NOT_SEEN, requests=1), "1 request, and none was seen from its start to its end"),
        (
            unclear(Why.LOST, lost_share=0.25),
            "keeps 27.4 KiB a request, but 25 % of what happened was lost, possibly also what freed it",
        ),
        (
            unclear(Why.NOT_COUNTED),
            "132 requests, of which native memory was not counted, and the workers grew",
        ),
        (unclear(Why.NOT_SURE, high=5_003.0), "keeps 4.9 KiB a request at most, and possibly nothing"),
        (
            unclear(Why.TOGETHER),
            "132 requests, always with those of others, so that an estimate cannot tell them apart",
        ),
        (unclear(Why.FEW, kept=0, requests=1, needed=71), "1 request, which is too few: 71 more decide"),
        (
            unclear(Why.FEW, kept=5 * MIB, requests=10, needed=62),
            "kept 5.0 MiB in 10 requests, which are too few: 62 more decide",
        ),
        (
            unclear(Why.RARE),
            "kept 3.5 MiB in 132 requests, too few of which kept any to tell a leak from a cache",
        ),
        (
            unclear(Why.FALLS, early=13_000.0, late=9_000.0),
            "keeps less and less: 12.7 KiB a request in the beginning, 8.8 KiB in the end. A longer recording shows if"
            " it stops",
        ),
        (unclear(Why.WORKERS_DIFFER, agree=1), "keeps 27.4 KiB a request, but only in 1 of 4 workers"),
        (unclear(Why.FREED_MORE, kept=-2 * MIB), "freed 2.0 MiB more than it allocated in 132 requests"),
    ],
)
def test_a_verdict_is_a_sentence(verdict, sentence):
    assert evidence(verdict) == sentence


def test_every_reason_and_every_kind_has_a_sentence_and_a_command():
    rise = HighWater(1, 1, 1, 1, 1)
    every = [Verdict(kind, high_water=rise) for kind in Kind if kind is not Kind.UNCLEAR]
    every += [unclear(why, needed=7) for why in Why]

    assert all(evidence(verdict) and next_step(verdict, Source()).startswith("phptrace ") for verdict in every)


SHOP = Source(("a b.phptrace", "c.phptrace"), ("php-fpm:shop",), stacks=True)


@pytest.mark.parametrize(
    ("verdict", "source", "command"),
    [
        (LEAK, Source(), "phptrace record --stacks -d 60s php-fpm"),
        (LEAK, SHOP, "phptrace flame --retained 'a b.phptrace' c.phptrace -o leak.svg"),
        (LEAK, dataclasses.replace(SHOP, stacks=False), "phptrace record --stacks -d 60s php-fpm:shop"),
        (Verdict(Kind.WARM_UP), SHOP, "phptrace record -d 10m php-fpm:shop"),
        (
            Verdict(Kind.HIGH_WATER),
            SHOP,
            "phptrace report --group-by worker --sort peak 'a b.phptrace' c.phptrace",
        ),
        (Verdict(Kind.CHURN), SHOP, "phptrace flame --metric rss 'a b.phptrace' c.phptrace -o churn.svg"),
        (Verdict(Kind.CACHE), SHOP, "phptrace export --format csv 'a b.phptrace' c.phptrace"),
        (Verdict(Kind.STEADY), SHOP, "phptrace report --sort growth 'a b.phptrace' c.phptrace"),
        (unclear(Why.FEW), SHOP, "phptrace record -d 10m php-fpm:shop"),
        (unclear(Why.NOT_SURE), SHOP, "phptrace record --native on -d 60s php-fpm:shop"),
        (unclear(Why.FREED_MORE), SHOP, "phptrace export --format csv 'a b.phptrace' c.phptrace"),
    ],
)
def test_the_next_step_is_a_command(verdict, source, command):
    assert next_step(verdict, source) == command


def test_a_file_with_an_evil_name_is_escaped():
    assert next_step(Verdict(Kind.STEADY), Source(("\x1b[2J",))) == r"phptrace report --sort growth '\x1b[2J'"


def test_a_label_is_one_short_word():
    assert [label(Verdict(kind)) for kind in Kind] == [
        "leak", "warm-up", "high-water", "churn", "cache", "steady", "unclear",
    ]  # fmt: skip


def test_no_target_of_a_crafted_recording_is_an_option_of_the_next_command():
    crafted = Source(targets=("-o/etc/cron.d/x", "--force", "php-fpm:shop", "-f"))

    assert crafted.record("-d 10m") == "phptrace record -d 10m php-fpm:shop"
    assert shown_targets(["--force"]) == "php-fpm"
