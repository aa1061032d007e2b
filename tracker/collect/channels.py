"""Which site is a search engine, which a network; and the channel that a visit belongs to.

Two kept tables and one ordered list of rules. What they conclude is stamped on the event at
intake, so a change here holds for new events only and a replay stays the same.

Source: GA4, default channel group (manual traffic): the order of `channel_of` is its order.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final

from tracker.model.record import DIRECT, NO_VALUE


class Kind(StrEnum):
    """What a known site is. The value is the medium of visits that it refers."""

    SEARCH = "organic"
    SOCIAL = "social"
    VIDEO = "video"
    SHOPPING = "shopping"
    EMAIL = "email"
    REFERRAL = "referral"  # none of these


UNASSIGNED = "Unassigned"

_ORGANIC: Final = {
    Kind.SEARCH: "Organic Search",
    Kind.SOCIAL: "Organic Social",
    Kind.VIDEO: "Organic Video",
    Kind.SHOPPING: "Organic Shopping",
    Kind.EMAIL: "Email",
    Kind.REFERRAL: "Referral",
}

# brand: the names by which UTM values and hosts mean it. A name with a dot is a host (with its
# subdomains), `name.*` one under every public suffix: google.* → google.co.uk.
_SITES: Final[dict[Kind, str]] = {
    Kind.SEARCH: """
        google: google google.* googlequicksearchbox
        bing: bing bing.com
        yahoo: yahoo search.yahoo.com search.yahoo.co.jp
        duckduckgo: duckduckgo ddg duckduckgo.com
        baidu: baidu baidu.com
        yandex: yandex yandex.* ya.ru
        ecosia: ecosia ecosia.org
        qwant: qwant qwant.com
        startpage: startpage startpage.com
        brave: brave search.brave.com
        naver: naver search.naver.com
        daum: daum search.daum.net
        seznam: seznam search.seznam.cz
        sogou: sogou sogou.com
        so.com: so.com
        ask: ask ask.com
        aol: aol search.aol.com
        kagi: kagi kagi.com
        mojeek: mojeek mojeek.com
        swisscows: swisscows swisscows.com
        metager: metager metager.org metager.de
        lycos: lycos search.lycos.com
        rambler: rambler nova.rambler.ru
        msn: msn
    """,
    Kind.SOCIAL: """
        facebook: facebook fb facebook.com fb.com fb.me
        instagram: instagram ig instagram.com
        threads: threads threads.net threads.com
        twitter: twitter x twitter.com x.com t.co
        linkedin: linkedin linkedin.com lnkd.in
        pinterest: pinterest pinterest.* pin.it
        reddit: reddit reddit.com redd.it
        tiktok: tiktok tiktok.com
        snapchat: snapchat snapchat.com
        whatsapp: whatsapp whatsapp.com wa.me
        telegram: telegram t.me telegram.org telegram.me
        messenger: messenger messenger.com
        discord: discord discord.com discordapp.com
        bluesky: bluesky bsky bsky.app
        mastodon: mastodon mastodon.social mstdn.social
        tumblr: tumblr tumblr.com
        quora: quora quora.com
        vk: vk vk.com vkontakte
        ok.ru: ok.ru odnoklassniki
        weibo: weibo weibo.com weibo.cn t.cn
        wechat: wechat weixin.qq.com
        xing: xing xing.com
        line: line.me
        hackernews: hackernews news.ycombinator.com
        medium: medium.com
        nextdoor: nextdoor nextdoor.com
        flipboard: flipboard flipboard.com
    """,
    Kind.VIDEO: """
        youtube: youtube youtube.com youtu.be
        vimeo: vimeo vimeo.com
        dailymotion: dailymotion dailymotion.com
        twitch: twitch twitch.tv
        netflix: netflix netflix.com
        hulu: hulu hulu.com
        bilibili: bilibili bilibili.com
        rumble: rumble rumble.com
    """,
    Kind.SHOPPING: """
        amazon: amazon amazon.*
        ebay: ebay ebay.*
        etsy: etsy etsy.com
        walmart: walmart walmart.com
        alibaba: alibaba alibaba.com
        aliexpress: aliexpress aliexpress.com
        shopify: shopify shop.app
        mercadolibre: mercadolibre mercadolibre.*
        idealo: idealo idealo.*
        shopzilla: shopzilla shopzilla.com
    """,
    Kind.EMAIL: """
        gmail: gmail mail.google.com com.google.android.gm
        outlook: outlook outlook.live.com outlook.office.com outlook.office365.com
        yahoo-mail: mail.yahoo.com
        gmx: gmx gmx.*
        proton: mail.proton.me
    """,
}

# Hosts of a brand that are neither search nor shop: people come from there by a link in a page.
_PLAIN_HOSTS: Final = frozenset(
    "accounts.google.com docs.google.com drive.google.com sites.google.com groups.google.com "
    "meet.google.com classroom.google.com aws.amazon.com".split()
)
_SUFFIX_CHARS_MAX = 6
"""com, co.uk, com.br: a public suffix under which brands hold their name; keeps google.attacker.io
out, whose rest has more."""


def _table() -> dict[str, tuple[str, Kind]]:
    table = {}
    for kind, text in _SITES.items():
        for line in text.split("\n"):
            brand, _, names = line.strip().partition(": ")
            for name in names.split():
                table[name] = (brand, kind)
    return table


_NAMES: Final = _table()


@lru_cache(maxsize=4_096)
def site_of_host(host: str) -> tuple[str, Kind]:
    """Return (source, kind) of a referring host: its brand when known, else the host itself."""
    bare = host.removeprefix("www.")
    if host in _PLAIN_HOSTS:
        return bare, Kind.REFERRAL
    rest = bare
    while rest:
        known = _NAMES.get(rest) if "." in rest else None
        label, _, rest = rest.partition(".")
        if known is None and _is_suffix(rest):
            known = _NAMES.get(label + ".*")
        if known is not None:
            return known
    return _application(bare) or (bare, Kind.REFERRAL)


def _application(package: str) -> tuple[str, Kind] | None:
    """Return the site of an Android application: com.twitter.android is as good as twitter.com."""
    if package.startswith(("com.", "org.")):
        for label in package.split(".")[1:]:
            known = _NAMES.get(label)
            if known is not None and known[1] in (Kind.SOCIAL, Kind.VIDEO):
                return known
        if package.endswith(".googlequicksearchbox"):
            return _NAMES["google"]
    return None


def _is_suffix(rest: str) -> bool:
    labels = rest.split(".")
    return (
        0 < len(rest) <= _SUFFIX_CHARS_MAX
        and len(labels) <= 2
        and all(2 <= len(label) <= 3 for label in labels)
    )


def kind_of_source(source: str) -> Kind | None:
    """Return what a UTM source names, None when it is no site that we know."""
    name = source.lower()
    known = _NAMES.get(name)
    if known is None and "." in name and len(name) <= 100:
        known = site_of_host(name)
        if known[1] is Kind.REFERRAL:
            return None
    return known[1] if known is not None else None


_DISPLAY = frozenset({"display", "banner", "expandable", "interstitial", "cpm"})
_SOCIAL = frozenset(
    {"social", "social-network", "social-media", "sm", "social network", "social media"}
)
_EMAIL = frozenset({"email", "e-mail", "e_mail", "e mail"})
_REFERRAL = frozenset({"referral", "app", "link"})
_PAID = {
    Kind.SHOPPING: "Paid Shopping",
    Kind.SEARCH: "Paid Search",
    Kind.SOCIAL: "Paid Social",
    Kind.VIDEO: "Paid Video",
}


@lru_cache(maxsize=4_096)
def channel_of(source: str, medium: str, campaign: str) -> str:
    """Return the channel of resolved `source` and `medium` and the campaign as sent.

    Source: GA4 default channel group; the first rule that fits decides.
    """
    medium, campaign = medium.lower(), campaign.lower()
    if source == DIRECT and medium in ("", NO_VALUE):
        return DIRECT
    if "cross-network" in campaign:
        return "Cross-network"
    kind = kind_of_source(source)
    if kind is not Kind.SHOPPING and _names_a_shop(campaign):
        kind = Kind.SHOPPING
    is_paid = _is_paid(medium)
    if is_paid and kind in _PAID:
        return _PAID[kind]
    if medium in _DISPLAY:
        return "Display"
    return "Paid Other" if is_paid else _unpaid(kind, source.lower(), medium)


def _unpaid(kind: Kind | None, source: str, medium: str) -> str:
    rules = (
        (kind is Kind.SHOPPING, "Organic Shopping"),
        (kind is Kind.SOCIAL or medium in _SOCIAL, "Organic Social"),
        (kind is Kind.VIDEO or "video" in medium, "Organic Video"),
        (kind is Kind.SEARCH or medium == "organic", "Organic Search"),
        (medium in _REFERRAL, "Referral"),
        (source in _EMAIL or medium in _EMAIL or kind is Kind.EMAIL, "Email"),
        (medium in ("affiliate", "affiliates"), "Affiliates"),
        (medium == "audio", "Audio"),
        ("sms" in (source, medium), "SMS"),
        (
            medium.endswith("push")
            or "mobile" in medium
            or "notification" in medium
            or source == "firebase",
            "Mobile Push Notifications",
        ),
    )
    return next((channel for fits, channel in rules if fits), UNASSIGNED)


def _is_paid(medium: str) -> bool:
    """Tell what `^(.*cp.*|ppc|retargeting|paid.*)$` tells."""
    return "cp" in medium or medium in ("ppc", "retargeting") or medium.startswith("paid")


def _names_a_shop(campaign: str) -> bool:
    """Tell what `^(.*(([^a-df-z]|^)shop|shopping).*)$` tells: a shop, but no workshop."""
    if "shopping" in campaign:
        return True
    start = campaign.find("shop")
    while start >= 0:
        before = campaign[start - 1] if start else ""
        if not before or before == "e" or not "a" <= before <= "z":
            return True
        start = campaign.find("shop", start + 1)
    return False


def organic_channel(kind: Kind) -> str:
    """Return the channel of a visit that a site of `kind` refers without any mark."""
    return _ORGANIC[kind]


CLICK_SOURCES: Final[dict[str, tuple[str, str]]] = {
    "gclid": ("google", "cpc"),
    "gbraid": ("google", "cpc"),
    "wbraid": ("google", "cpc"),
    "dclid": ("google", "display"),
    "msclkid": ("bing", "cpc"),
    "ttclid": ("tiktok", "cpc"),
    "li_fat_id": ("linkedin", "cpc"),
    "twclid": ("twitter", "cpc"),
    "ScCid": ("snapchat", "cpc"),
    "rdt_cid": ("reddit", "cpc"),
    # These two also mark links that nobody paid for.
    "fbclid": ("facebook", "social"),
    "epik": ("pinterest", "social"),
}
"""(source, medium) that a network's click id means where no UTM value says more."""
