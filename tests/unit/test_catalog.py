from __future__ import annotations

import csv
import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.catalog import gpus, quotes, table
from provisioner.catalog.explain import explain
from provisioner.catalog.gpus import GpuWish, parse_name, parse_wish
from provisioner.catalog.rank import rank
from provisioner.catalog.wish import Wish, check_gpu_known, matching
from provisioner.errors import ConfigError
from provisioner.models import Market, Offer

ALL = table.bundled()
L4 = Offer("gcp", "us-east1", "g2", Market.ON_DEMAND, "L4", 1, 24.0, 4, 16.0, "x86_64", 0.7)


def found(**wish: object) -> list[Offer]:
    return matching(ALL, Wish(**wish))  # type: ignore[arg-type]  # the tests below say what they mean


def test_the_table_is_whole() -> None:
    path = Path(table.__file__).parent / "data" / "gpu-offers.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "provider", "region", "instance_type", "gpu", "gpu_count", "gpu_memory_gib", "vcpus", "memory_gib", "arch",
        "on_demand_usd_hour", "spot_usd_hour", "spot_interruption_bucket",
    ]  # fmt: skip
    assert len(ALL) == 2 * len(rows) == 3536
    keys = {(offer.provider, offer.region, offer.instance_type, offer.market) for offer in ALL}
    assert len(keys) == len(ALL)
    for row, on_demand, spot in zip(rows, ALL[::2], ALL[1::2], strict=True):
        assert (on_demand.market, spot.market) == (Market.ON_DEMAND, Market.SPOT)
        for offer, price in ((on_demand, row["on_demand_usd_hour"]), (spot, row["spot_usd_hour"])):
            assert offer.price_usd_hour == (float(price) if price else None)
            assert (offer.provider, offer.region) == (row["provider"], row["region"])
            assert (offer.instance_type, offer.gpu) == (row["instance_type"], row["gpu"])
            assert (offer.gpu_count, offer.gpu_memory_gib) == (int(row["gpu_count"]), float(row["gpu_memory_gib"]))
            assert (offer.vcpus, offer.memory_gib) == (int(row["vcpus"]), float(row["memory_gib"]))
            assert offer.arch == row["arch"]
        assert on_demand.interruption_bucket is None


def test_no_price_is_zero_and_every_price_has_a_day() -> None:
    for offer in ALL:
        assert offer.price_usd_hour != 0
        assert (offer.priced_on is None) == (offer.price_usd_hour is None)
    a10g = next(o for o in ALL if (o.region, o.instance_type, o.market) == ("us-east-1", "g5.xlarge", Market.ON_DEMAND))
    assert a10g.price_usd_hour == 1.006
    assert a10g.priced_on == date(2026, 7, 20)
    assert all(source.source for source in table.sources().values())


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("A10G", GpuWish("A10G")),
        ("a10g:4", GpuWish("a10g", 4)),
        ("any", GpuWish(None)),
        ("ANY:2", GpuWish(None, 2)),
        ("none", None),
        (" NVIDIA L4 ", GpuWish("NVIDIA L4")),
    ],
)
def test_gpu_wishes(text: str, wish: GpuWish | None) -> None:
    assert parse_wish(text) == wish


@pytest.mark.parametrize(
    "text", ["", ":", "A10G:", "A10G:x", "A10G:-1", "A10G:0", "A10G:9999", "-x", "a:b:1", "x" * 99]
)
def test_what_is_no_gpu_wish(text: str) -> None:
    with pytest.raises(ValueError, match="GPU"):
        parse_wish(text)


@given(st.text())
def test_any_text_is_a_gpu_wish_or_a_value_error(text: str) -> None:
    try:
        wish = parse_wish(text)
    except ValueError:
        return
    assert wish is None or wish.count >= 1
    parse_name(text)


@pytest.mark.parametrize(
    ("name", "gpu_names"),
    [
        ("a10g", {"A10G"}),
        ("NVIDIA A10G", {"A10G"}),
        ("A10", {"A10"}),
        ("nvidia-tesla-t4", {"T4"}),
        ("T4G", {"T4g"}),
        ("H100", {"H100", "H100-NVL"}),
        ("h100-nvl", {"H100-NVL"}),
        ("NVIDIA H100 80GB HBM3", {"H100"}),
        ("A100", {"A100", "A100-80GB"}),
        ("A100-80GB", {"A100-80GB"}),
        ("A100 80gb", {"A100-80GB"}),
        ("NVIDIA A100-SXM4-40GB", {"A100"}),
        ("V100-16GB", {"V100"}),
        ("RTX PRO 6000", {"RTXPRO6000"}),
        ("rtxpro6000", {"RTXPRO6000"}),
    ],
)
def test_a_name_finds_what_people_mean(name: str, gpu_names: set[str]) -> None:
    assert {offer.gpu for offer in found(gpu=GpuWish(name))} == gpu_names


def test_the_memory_in_a_name_is_that_of_the_offer_whatever_the_offer_is_called() -> None:
    offers = found(gpu=GpuWish("A100-80GB", 8))
    assert {(offer.provider, offer.gpu) for offer in offers} >= {("aws", "A100"), ("gcp", "A100-80GB")}
    assert {offer.gpu_memory_gib for offer in offers} == {80}


def test_what_is_sold_as_24_gb_is_found_by_24() -> None:
    names = {offer.gpu for offer in found(gpu_memory_gib=24, gpu=GpuWish(None))}
    assert {"A10G", "L4", "A10"} <= names
    assert "T4" not in names
    assert not found(gpu=GpuWish("A10G"), gpu_memory_gib=25)
    assert {offer.gpu for offer in found(gpu=GpuWish("L40S"), gpu_memory_gib=48)} == {"L40S"}
    assert gpus.MEMORY_SHOWN < 22.4 / 24


def test_a_part_of_a_gpu_is_no_gpu() -> None:
    assert all(offer.gpu_count == 1 for offer in found(gpu=GpuWish("L4")))
    assert any(offer.gpu_count == 0 for offer in found(instance_types=("g6f.*",)))


def test_each_wish_holds() -> None:
    offers = found(
        providers=("aws", "gcp"),
        regions=("us-*",),
        instance_types=("G5.*", "g2-standard-4"),
        markets=(Market.SPOT,),
        vcpus=4,
        max_price_usd_hour=0.5,
    )
    assert {offer.instance_type for offer in offers} == {"g5.xlarge", "g2-standard-4"}
    assert all(offer.price_usd_hour is not None and offer.price_usd_hour <= 0.5 for offer in offers)
    assert all(offer.region.startswith("us-") and offer.market is Market.SPOT for offer in offers)


def test_an_unknown_price_never_passes_a_highest_price() -> None:
    assert any(offer.price_usd_hour is None for offer in found(providers=("azure",)))
    assert all(offer.price_usd_hour is not None for offer in found(providers=("azure",), max_price_usd_hour=1e9))


def test_zones() -> None:
    open_zone, closed = L4, replace(L4, zone="us-east1-b")
    assert matching([open_zone, closed], Wish(zones=("us-east1-b",))) == [open_zone, closed]
    assert matching([open_zone, closed], Wish(zones=("us-east1-c",))) == [open_zone]
    assert matching([open_zone, closed], Wish(zones=("eu-west1-b",))) == []
    assert matching([open_zone], Wish(zones=("2",))) == [open_zone]


@pytest.mark.parametrize(
    ("name", "near"), [("A10O", "A10"), ("H10", "H100"), ("l40", "L40S"), ("A100-20GB", "A100"), ("b100", "B")]
)
def test_an_unknown_gpu_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        check_gpu_known(GpuWish(name), ALL)
    assert near in caught.value.resolution
    assert "did you mean" in caught.value.resolution
    assert "A10G" in caught.value.details


def test_a_gpu_like_nothing_is_refused_too() -> None:
    with pytest.raises(ConfigError) as caught:
        check_gpu_known(GpuWish("zzzzz"), ALL)
    assert "gpu-runner offers" in caught.value.resolution
    check_gpu_known(GpuWish(None), ALL)
    check_gpu_known(None, [])


def test_rank_by_price_with_the_unknown_last() -> None:
    prices = [offer.price_usd_hour for offer in rank(ALL)]
    known = [price for price in prices if price is not None]
    assert prices[: len(known)] == sorted(known)
    assert set(prices[len(known) :]) == {None}


@given(st.randoms())
def test_rank_is_the_same_in_whatever_order_offers_come(shuffler: random.Random) -> None:
    offers = list(ALL[:300])
    shuffler.shuffle(offers)
    assert rank(offers) == rank(ALL[:300])


def test_rank_by_preference_and_spot_first() -> None:
    ranked = rank(found(gpu=GpuWish("T4")), providers=("azure", "aws"), spot_first=True)
    order = list(dict.fromkeys((offer.provider, offer.market) for offer in ranked))
    assert order == [
        ("azure", Market.SPOT), ("azure", Market.ON_DEMAND), ("aws", Market.SPOT), ("aws", Market.ON_DEMAND),
    ]  # fmt: skip
    assert {offer.provider for offer in rank(found(gpu=GpuWish("L4")), providers=("gcp",))[:5]} == {"gcp"}


@pytest.mark.parametrize(
    ("wish", "change"),
    [
        (Wish(gpu=GpuWish("A10G"), max_price_usd_hour=0.3), "--max-price 0.4125: aws us-east-1 g5.xlarge"),
        (Wish(gpu=GpuWish("H100", 3)), "--gpu H100:4: "),
        (Wish(gpu=GpuWish("A100"), gpu_memory_gib=96), "--gpu-memory 80: "),
        (Wish(gpu=GpuWish("B200", 8), regions=("af-*",)), "--region "),
        (Wish(gpu=GpuWish("A10"), providers=("aws",)), "--provider azure: "),
        (Wish(gpu=GpuWish("T4"), zones=("mars-1a",)), "without --zone: "),
        (Wish(instance_types=("nonsense",), vcpus=4), "without --instance-type: "),
        (Wish(gpu=GpuWish("L4"), vcpus=1000), "--vcpus "),
        (Wish(providers=("azure",), markets=(Market.SPOT,), max_price_usd_hour=2), "--market on-demand: azure"),
        (Wish(gpu=GpuWish("B300", 8), regions=("af-*",), max_price_usd_hour=1), " and "),
    ],
)
def test_an_empty_answer_names_the_nearest_miss(wish: Wish, change: str) -> None:
    assert matching(ALL, wish) == []
    why = explain(ALL, wish)
    assert why.considered == len(ALL)
    assert why.nearest is not None
    assert change in why.nearest.change
    assert why.nearest.offers >= 1
    assert [out.offers for out in why.ruled_out] == sorted((out.offers for out in why.ruled_out), reverse=True)
    assert why.lines()[0] == "none of 3,536 known offers fits"


def test_what_the_nearest_miss_says_really_helps() -> None:
    wish = Wish(gpu=GpuWish("A10G"), max_price_usd_hour=0.3)
    why = explain(ALL, wish)
    assert why.nearest is not None
    price = float(why.nearest.change.split()[1].rstrip(":"))
    assert matching(ALL, replace(wish, max_price_usd_hour=price))
    counts = {out.wish: out.offers for out in why.ruled_out}
    assert counts["--gpu A10G"] == len(ALL) - len([offer for offer in ALL if offer.gpu == "A10G"])


def test_a_name_that_nobody_has_gets_a_suggestion() -> None:
    why = explain(ALL, Wish(regions=("us-esat-1",)))
    assert "did you mean" in why.ruled_out[0].hint
    assert "us-east-1" in why.ruled_out[0].hint
    assert explain(ALL, Wish(regions=("zzz",))).ruled_out[0].hint == "nobody has that name"


def test_nothing_at_all_is_explained_too() -> None:
    assert explain([], Wish(gpu=GpuWish("T4"))).nearest is None
    impossible = Wish(gpu=GpuWish("T4"), regions=("mars",), zones=("x",), instance_types=("y",))
    assert explain(ALL, impossible).nearest is None
    assert "ask for less" in explain(ALL, impossible).lines()[-1]


def test_what_a_comparable_machine_would_have_cost() -> None:
    quote = quotes.cheapest_like(GpuWish("A10G"), duration_s=1800)
    assert quote is not None
    assert (quote.offer.provider, quote.offer.instance_type) == ("aws", "g5.xlarge")
    assert quote.cost_usd == pytest.approx(1.006 / 2)
    assert quote.as_of == date(2026, 7, 20)
    assert "karpenter" in quote.source
    any_gpu = quotes.cheapest_like(duration_s=60)
    assert any_gpu is not None
    assert any_gpu.offer.gpu_count == 1
    assert any_gpu.offer.arch == "x86_64"
    assert any_gpu.price_usd_hour == any_gpu.offer.price_usd_hour
    home = quotes.cheapest_like(GpuWish("RTX4090"), 24, duration_s=60)
    assert home is not None
    assert (home.offer.gpu_memory_gib or 0) >= 22
    assert quotes.cheapest_like(GpuWish("RTX4090"), 5000, duration_s=60) is None
