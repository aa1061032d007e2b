"""Metrics computed from sums, as answers print them.

A count is a number; people that are not known exactly say so; money is an amount and a currency;
a ratio shows what it was divided from. Formulas stand in `tracker.model.metric`, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from tracker.model.metric import Sort, Wanted
from tracker.model.money import MICROS, format_micros
from tracker.query.counts import NOBODY, Counts, Distinct, Sums

DECIMALS = 6
"""Of ratios: a share of one in a million is still told from nothing."""

Figure = int | Distinct | Counts
"""A count, a number of people, or micros by currency."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The sums of a dimension behind some metrics, by column and value."""

    found: Mapping[str, Mapping[str, Figure]]
    currency: str  # of the site: what nothing is shown in

    def values(self) -> set[str]:
        """Return the values for which anything was counted."""
        return {value for by_value in self.found.values() for value, fig in by_value.items() if fig}

    def of(self, leaf: Wanted, value: str) -> Figure:
        """Return what was counted under one value for a metric that is no ratio."""
        nothing: dict[Sort, Figure] = {Sort.MONEY: {}, Sort.UNIQUE: NOBODY}
        default = nothing.get(leaf.metric.sort, 0)
        return self.found[leaf.column].get(value, default)

    def show(self, wanted: Wanted, value: str) -> object:
        """Return a metric of one value as answers print it.

        Shape: count: n; estimated people: {"value", "estimate": true, "error"}; money:
        {"amount", "currency"}, in several currencies {"amount": null, "currency": null,
        "by_currency", "missing_rates"}; ratio: {"value", "numerator", "denominator"}, where the
        value is null without a denominator. A ratio of money to a count prints its numerator as
        an amount and adds "currency": {"value": 277.76929, "numerator": "59442.63",
        "denominator": 214, "currency": "USD"}.
        """
        if wanted.metric.sort is not Sort.RATIO:
            return _show_figure(self.of(wanted, value), self.currency)
        above = self.of(wanted.part("numerator"), value)
        below = _number(self.of(wanted.part("denominator"), value))
        if isinstance(above, dict):
            return _show_money_ratio(above, below, self.currency)
        return ratio(above, self.of(wanted.part("denominator"), value))

    def rank(self, wanted: Wanted, value: str) -> Decimal | None:
        """Return the number by which a metric sorts, None for one that is unknown."""
        if wanted.metric.sort is not Sort.RATIO:
            return _rank(self.of(wanted, value))
        above = _rank(self.of(wanted.part("numerator"), value))
        below = _number(self.of(wanted.part("denominator"), value))
        return above / below if above is not None and below else None


def leaves(metrics: Iterable[Wanted]) -> list[Wanted]:
    """Return the metrics that have a column of their own and that `metrics` are made of."""
    found: dict[str, Wanted] = {}
    for wanted in metrics:
        parts = [wanted]
        if wanted.metric.sort is Sort.RATIO:
            parts = [wanted.part("numerator"), wanted.part("denominator")]
        found |= {part.column: part for part in parts}
    return list(found.values())


def read_figures(sums: Sums, wanted: Iterable[Wanted], currency: str) -> Figures:
    """Sum what the leaves in `wanted` need, and nothing else."""
    found: dict[str, Mapping[str, Figure]] = {}
    for leaf in wanted:
        if leaf.metric.sort is Sort.UNIQUE:
            found[leaf.column] = sums.people(leaf.column)
        elif leaf.metric.sort is Sort.MONEY:
            found[leaf.column] = sums.money(leaf.column)
        else:
            found[leaf.column] = sums.count(leaf.column)
    return Figures(found, currency)


def ratio(above: Figure, below: Figure) -> dict[str, object]:
    """Return a ratio of two numbers as answers print it."""
    numerator, denominator = _number(above), _number(below)
    shown: dict[str, object] = {
        "value": round(numerator / denominator, DECIMALS) if denominator else None,
        "numerator": numerator,
        "denominator": denominator,
    }
    error = _error(above) + _error(below)
    return shown | _estimate(error) if error else shown


def show_people(people: Distinct) -> object:
    """Return a number of visitors as answers print it."""
    if not people.unsure:
        return people.sure
    return {"value": people.value} | _estimate(people.error)


def _estimate(error: float) -> dict[str, object]:
    return {"estimate": True, "error": round(error, DECIMALS)}


def _error(figure: Figure) -> float:
    return figure.error if isinstance(figure, Distinct) else 0.0


def _number(figure: Figure) -> int:
    if isinstance(figure, Distinct):
        return figure.value
    assert isinstance(figure, int), "money is no number"  # noqa: S101 - our bug
    return figure


def _show_figure(figure: Figure, currency: str) -> object:
    if isinstance(figure, dict):
        return _show_money(figure, currency)
    return show_people(figure) if isinstance(figure, Distinct) else figure


def _show_money(micros: Counts, site_currency: str) -> dict[str, object]:
    if len(micros) > 1:
        return {"amount": None, "currency": None} | _several(micros, site_currency)
    currency = next(iter(micros), site_currency)
    return {"amount": format_micros(micros.get(currency, 0), currency), "currency": currency}


def _several(micros: Counts, site_currency: str) -> dict[str, object]:
    return {
        "by_currency": {code: format_micros(micros[code], code) for code in sorted(micros)},
        "missing_rates": sorted(micros.keys() - {site_currency}),
    }


def _show_money_ratio(micros: Counts, below: int, site_currency: str) -> dict[str, object]:
    if len(micros) > 1:
        nothing = {"value": None, "numerator": None, "denominator": below, "currency": None}
        return nothing | _several(micros, site_currency)
    money = _show_money(micros, site_currency)
    value = None
    if below:
        exact = Decimal(sum(micros.values())) / MICROS / below
        value = float(exact.quantize(Decimal(1).scaleb(-DECIMALS), ROUND_HALF_EVEN))
    return {
        "value": value,
        "numerator": money["amount"],
        "denominator": below,
        "currency": money["currency"],
    }


def _rank(figure: Figure) -> Decimal | None:
    if isinstance(figure, dict):
        # Amounts of two currencies have no order.
        return Decimal(sum(figure.values())) if len(figure) < 2 else None
    return Decimal(_number(figure))
