"""What a User-Agent says: device, browser, system, and whether a program visits, not a person.

Stamped at intake with the rule that decided, so that a newer list never changes an old number.
Bots are counted apart, never dropped. Programs that send on behalf of somebody (curl, a server's
HTTP library) are no bots: who uses one integrates or tests, and must see the events arrive.

Source: crawler-user-agents (list of patterns), ua-parser (uap-core), Sec-Purpose (Fetch).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

import crawleruseragents  # type: ignore[import-untyped]
import ua_parser

USER_AGENT_CHARS_MAX = 512
"""Real ones have up to some 350; the patterns run over what is left of a longer one."""
CACHED_AGENTS = 8_192
"""Of 512 characters: 8 MB at most. A miss costs 0.8 ms, a hit nothing."""
LANGUAGE_CHARS_MAX = 35
ACCEPTED_CHARS_MAX = 128
"""Of an Accept-Language header; the first language is what counts."""
RULE_CHARS_MAX = 64

TOOLS: Final = frozenset(
    (
        "aiohttp apache-httpclient axios curl dart dio faraday go-http-client got guzzlehttp "
        "hackney httpie http.rb insomnia java java-http-client jersey ktor-client libcurl "
        "libwww-perl lua-resty-http lwp::simple node node-fetch node.js okhttp php "
        "postmanruntime powershell python python-httpx python-requests python-urllib reqwest "
        "rest-client restsharp ruby spring superagent typhoeus undici unirest vert.x-webclient "
        "wget"
    ).split()
)
"""First product of a User-Agent, lower case: libraries and tools by which people send events."""

_HEADLESS: Final = ("headless", "phantomjs", "puppeteer", "playwright", "selenium", "slimerjs")
_BOT_WORDS: Final = ("bot", "crawl", "spider")
_TV_MARKS: Final = (
    "smarttv",
    "smart-tv",
    "smart tv",
    "appletv",
    "apple tv",
    "googletv",
    "android tv",
    "bravia",
    "hbbtv",
    "web0s",
    "netcast",
    "roku",
    "crkey",
)
_MOBILE_SYSTEMS: Final = frozenset(
    "iOS|Windows Phone|BlackBerry OS|KaiOS|Firefox OS|Symbian OS|HarmonyOS".split("|")
)
_DESKTOP_SYSTEMS: Final = frozenset(
    "Windows|Mac OS X|Linux|Ubuntu|Fedora|Debian|Chrome OS|FreeBSD|OpenBSD|NetBSD|Red Hat|SUSE"
    "|Mac OS".split("|")
)


@dataclass(frozen=True, slots=True)
class Agent:
    """What one User-Agent says; empty texts where it says nothing. `bot` names the rule."""

    device: str = ""
    browser: str = ""
    os: str = ""
    bot: str = ""


_NOBODY = Agent()


@lru_cache(maxsize=CACHED_AGENTS)
def read_agent(user_agent: str) -> Agent:
    """Return what `user_agent` says."""
    text = user_agent[:USER_AGENT_CHARS_MAX]
    if not text or _is_tool(text.lower()):
        return _NOBODY
    bot = _bot(text)
    parsed = ua_parser.parse(text)
    browser = parsed.user_agent.family if parsed.user_agent else ""
    system = parsed.os.family if parsed.os else ""
    device = "bot" if bot else _device(text, system, parsed.device.family if parsed.device else "")
    return Agent(device=device, browser=_known(browser), os=_known(system), bot=bot)


def _known(family: str) -> str:
    return "" if family == "Other" else family


def _is_tool(lower: str) -> bool:
    product = lower.partition("/")[0].partition(" ")[0]
    return product in TOOLS and not any(word in lower for word in _BOT_WORDS)


def _bot(text: str) -> str:
    lower = text.lower()
    for mark in _HEADLESS:
        if mark in lower:
            return "headless"
    for chunk, patterns in _crawlers():
        if chunk.search(text):
            matching = next(pattern for pattern in patterns if re.search(pattern, text))
            return ("crawler:" + matching.replace("\\", "").strip("^/ "))[:RULE_CHARS_MAX]
    return ""


_CHUNK = 25
"""Alternatives in one expression: one large one backtracks, single ones cost a call each."""


@cache
def _crawlers() -> tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]:
    patterns = tuple(str(item["pattern"]) for item in crawleruseragents.CRAWLER_USER_AGENTS_DATA)
    chunks = (patterns[at : at + _CHUNK] for at in range(0, len(patterns), _CHUNK))
    return tuple((re.compile("|".join(chunk)), chunk) for chunk in chunks)


def _device(text: str, system: str, family: str) -> str:
    """Return the class of a device. Phones say so ("Mobi"); an Android that does not is a tablet.

    Source: the advice that browser vendors give: MDN, "Browser detection using the user agent".
    """
    lower = text.lower()
    if any(mark in lower for mark in _TV_MARKS) or "TV" in family:
        return "tv"
    says_mobile = "mobi" in lower or system in _MOBILE_SYSTEMS
    is_silent_android = system == "Android" and not says_mobile
    if family == "iPad" or "tablet" in lower or "kindle" in lower or is_silent_android:
        return "tablet"
    if says_mobile:
        return "mobile"
    if system in _DESKTOP_SYSTEMS or "x11" in lower:
        return "desktop"
    return ""


@dataclass(frozen=True, slots=True)
class Client:
    """The dimensions that the headers of one client say, and the rule that calls it a bot."""

    dims: Mapping[str, str]
    bot: str


def read_client(user_agent: str, languages: str) -> Client:
    """Return what a client's User-Agent and Accept-Language say; empty values are left out."""
    if len(user_agent) > USER_AGENT_CHARS_MAX or len(languages) > ACCEPTED_CHARS_MAX:
        return _client(user_agent[:USER_AGENT_CHARS_MAX], languages[:ACCEPTED_CHARS_MAX])
    return _client(user_agent, languages)


@lru_cache(maxsize=CACHED_AGENTS)
def _client(user_agent: str, languages: str) -> Client:
    agent = read_agent(user_agent)
    found = {
        "device": agent.device,
        "browser": agent.browser,
        "os": agent.os,
        "language": read_language(languages),
    }
    return Client({name: value for name, value in found.items() if value}, agent.bot)


def read_language(accepted: str) -> str:
    """Return the first language of an Accept-Language header: de, pt-BR; empty for none."""
    tag = accepted.partition(",")[0].partition(";")[0].strip()
    if not tag or len(tag) > LANGUAGE_CHARS_MAX:
        return ""
    parts = tag.replace("_", "-").split("-")
    if not all(part.isascii() and part.isalnum() for part in parts) or not parts[0].isalpha():
        return ""
    return "-".join([parts[0].lower(), *(_subtag(part) for part in parts[1:])])


def _subtag(part: str) -> str:
    """Write a region in capitals and a script in title case, as BCP 47 recommends."""
    if len(part) == 2:
        return part.upper()
    return part.title() if len(part) == 4 and part.isalpha() else part.lower()


def warm() -> None:
    """Load lists and parsers now (some 0.2 s) rather than during the first request."""
    read_agent("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36")
