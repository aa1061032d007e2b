"""Money: integer micros and a currency. Never a float, never two currencies in one sum.

Source: ISO 4217 for the codes and minor units.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

MICROS = 1_000_000
UNITS_MAX = 10**9
"""An event may carry at most a billion units: 10^15 micros, and 9,000 such events fit 63 bits."""

# The minor units that differ from two (ISO 4217, list one).
_MINOR_UNITS = dict.fromkeys(
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0
) | dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3)

CURRENCIES = frozenset(
    (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP "
        "BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP "
        "GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES "
        "KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU "
        "MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON "
        "RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND "
        "TOP TRY TTD TWD TZS UAH UGX USD UYI UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER "
        "ZAR ZMW ZWG"
    ).split()
)


def minor_units(currency: str) -> int:
    """Return how many decimals `currency` is written with."""
    return _MINOR_UNITS.get(currency, 2)


def parse_micros(value: object) -> int | None:
    """Return `value` (a decimal string or a number) in micros, None when it is no amount.

    Rounds half to even at the sixth decimal. Refuses booleans, NaN, infinities and anything
    beyond ±UNITS_MAX.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and (len(value) > 40 or "_" in value):
        return None
    try:
        amount = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        return None
    if not amount.is_finite() or abs(amount) > UNITS_MAX:
        return None
    return int((amount * MICROS).to_integral_value(ROUND_HALF_EVEN))


def format_micros(micros: int, currency: str) -> str:
    """Return `micros` as a decimal string with the minor units of `currency`.

    More decimals are shown when the amount has them, so that nothing is rounded away.
    """
    amount = Decimal(micros) / MICROS
    places = minor_units(currency)
    while places < 6 and amount != round(amount, places):
        places += 1
    return f"{amount:.{places}f}"
