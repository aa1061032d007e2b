"""The registry of metrics: the only place where a formula exists.

The API, the command line, the live page, the docs and the property tests read it. A ratio is
recomputed from sums, never averaged; without a denominator it is null.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Sort(StrEnum):
    """What a metric's number is."""

    COUNT = "count"  # how often something happened
    UNIQUE = "unique"  # how many visitors did it, each once
    MONEY = "money"  # micros, one sum a currency
    RATIO = "ratio"  # one metric by another


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    `column` is the counter's column (COUNT, MONEY: the prefix before `:CURRENCY`, UNIQUE: the
    name before `.last` and `.gap`). A RATIO names its two metrics instead.
    """

    name: str
    sort: Sort
    meaning: str
    source: str
    column: str = ""
    numerator: str = ""
    denominator: str = ""
    named: bool = False  # `conversions:add_to_cart`: the same of one name


_ORDERS_ONLY = "conversion `purchase`, one an order_id"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="impressions",
            sort=Sort.COUNT,
            column="impressions",
            meaning="ads and marked elements that were shown",
            source="SEMANTICS, events",
        ),
        Metric(
            name="clicks",
            sort=Sort.COUNT,
            column="clicks",
            named=True,
            meaning="ad clicks; `clicks:NAME` counts clicks on marked elements instead",
            source="Google Ads API, metrics.clicks",
        ),
        Metric(
            name="ctr",
            sort=Sort.RATIO,
            numerator="clicks",
            denominator="impressions",
            meaning="clicks ÷ impressions, total by total",
            source="Google Ads API, metrics.ctr",
        ),
        Metric(
            name="views",
            sort=Sort.COUNT,
            column="views",
            meaning="page views",
            source="SEMANTICS, events",
        ),
        Metric(
            name="visitors",
            sort=Sort.UNIQUE,
            column="visitors",
            meaning="distinct visitors with a view, click or conversion",
            source="SEMANTICS, people",
        ),
        Metric(
            name="sessions",
            sort=Sort.COUNT,
            column="sessions",
            meaning="sessions that began; 30 minutes of silence end one",
            source="SEMANTICS, people",
        ),
        Metric(
            name="conversions",
            sort=Sort.COUNT,
            column="conversions",
            named=True,
            meaning="macro conversions of the site; `conversions:NAME` those of one name",
            source="SEMANTICS, events",
        ),
        Metric(
            name="converters",
            sort=Sort.UNIQUE,
            column="converters",
            meaning="distinct visitors with a macro conversion",
            source="GA4 Data API, user key events",
        ),
        Metric(
            name="cr",
            sort=Sort.RATIO,
            numerator="conversions",
            denominator="clicks",
            named=True,
            meaning="conversions ÷ ad clicks; `cr:NAME` those of one name",
            source="Google Ads API, conversions_from_interactions_rate",
        ),
        Metric(
            name="visitor_cr",
            sort=Sort.RATIO,
            numerator="converters",
            denominator="visitors",
            meaning="converters ÷ visitors, unique by unique",
            source="Plausible, metrics-definitions.md",
        ),
        Metric(
            name="orders",
            sort=Sort.COUNT,
            column="orders",
            meaning=f"orders not refunded in full ({_ORDERS_ONLY})",
            source="SEMANTICS, money",
        ),
        Metric(
            name="revenue",
            sort=Sort.MONEY,
            column="revenue",
            meaning="net revenue of orders and of other macro conversions with a value",
            source="SEMANTICS, money",
        ),
        Metric(
            name="refunds",
            sort=Sort.COUNT,
            column="refunds",
            meaning="refunds, in the buckets of the orders they take back",
            source="SEMANTICS, money",
        ),
        Metric(
            name="refunded",
            sort=Sort.MONEY,
            column="refunded",
            meaning="money refunded, in the buckets of the orders it was paid for",
            source="SEMANTICS, money",
        ),
        Metric(
            name="aov",
            sort=Sort.RATIO,
            numerator="order_revenue",
            denominator="orders",
            meaning="orders' net revenue ÷ orders",
            source="SEMANTICS, money",
        ),
    )
}

ORDER_REVENUE = Metric(
    name="order_revenue",
    sort=Sort.MONEY,
    column="order_revenue",
    meaning="net revenue of orders alone: the numerator of AOV",
    source="SEMANTICS, money",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A metric as asked for: its registry entry and, after a colon, a name."""

    text: str
    metric: Metric
    name: str = ""

    @property
    def column(self) -> str:
        """Return the counter's column (COUNT), or its prefix (MONEY, UNIQUE)."""
        return f"{self.metric.column}:{self.name}" if self.name else self.metric.column

    def part(self, which: str) -> Wanted:
        """Return a ratio's "numerator" or "denominator" as a metric of its own."""
        name = self.metric.numerator if which == "numerator" else self.metric.denominator
        metric = ORDER_REVENUE if name == ORDER_REVENUE.name else METRICS[name]
        own = self.name if which == "numerator" and metric.named else ""
        return Wanted(name, metric, own)


def parse_metric(text: str) -> Wanted | None:
    """Return the metric that "ctr" or "conversions:add_to_cart" names, None for no metric."""
    base, colon, name = text.partition(":")
    metric = METRICS.get(base)
    if metric is None or (colon and (not metric.named or not name)):
        return None
    return Wanted(text, metric, name)
