"""Where somebody came from and what they used: every rule of the tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.collect.admit import Rules, admit_raw
from tracker.collect.agents import read_agent, read_language
from tracker.collect.channels import CLICK_SOURCES, Kind, channel_of, kind_of_source, site_of_host
from tracker.collect.fields import CLICK_NETWORKS
from tracker.collect.sender import Sender, know
from tracker.collect.traffic import read_place
from tracker.model.definition import Site
from tracker.model.keys import Keys
from tracker.model.record import DIMENSIONS, EventRecord
from tracker.model.window import HOUR_MS

NOW = 1_767_607_200_000
SITES = {
    "shop": Site(
        key="shop", domains=("shop.example",), payment_providers=("paypal.com", "stripe.com")
    ),
    "bare": Site(key="bare"),
    "lower": Site(key="lower", lowercase_utm=True),
}
RULES = Rules(Keys(b"k" * 32), {key: know(site, {}) for key, site in SITES.items()}, HOUR_MS)
DESKTOP = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36"
)
SENDER = Sender(received_at_ms=NOW, address="203.0.113.5")


def admitted(sender: Sender = SENDER, **fields: object) -> EventRecord:
    found = admit_raw({"site": "shop", "type": "view", **fields}, sender, RULES)
    assert isinstance(found, EventRecord), found
    return found


def origin(url: str = "", referrer: str = "", **fields: object) -> tuple[str, str, str, bool]:
    event = admitted(url=url, referrer=referrer, **fields)
    dims = event.dims
    return (
        dims.get("source", "(direct)"),
        dims.get("medium", "(none)"),
        dims.get("channel", "(direct)"),
        event.arrival,
    )


# --- UTM values -----------------------------------------------------------------------------


def test_utm_values_are_decoded_once_from_an_address_and_not_at_all_from_fields() -> None:
    url = (
        "https://shop.example/?utm_source=a%3Ab&utm_campaign=x+y&utm_term=%2541&utm_content=%20c%20"
    )
    dims = admitted(url=url).dims
    found = [dims[f"utm_{name}"] for name in ("source", "campaign", "term", "content")]
    assert found == ["a:b", "x y", "%41", "c"]
    dims = admitted(utm_source="a%3Ab", utm_campaign=" x+y ").dims
    assert [dims["utm_source"], dims["utm_campaign"]] == ["a%3Ab", "x+y"]


def test_a_field_overrides_the_address_one_by_one() -> None:
    event = admitted(url="/?utm_source=url&utm_medium=email", utm_source="field")
    assert (event.dims["utm_source"], event.dims["utm_medium"]) == ("field", "email")


def test_values_are_cut_at_256_characters_and_lose_control_characters() -> None:
    value = "x" * 257
    assert len(admitted(url=f"/?utm_source={value}").dims["utm_source"]) == 256
    assert admitted(url="/?utm_source=a%00%0Ab").dims["utm_source"] == "ab"


def test_the_first_of_repeated_parameters_counts() -> None:
    assert admitted(url="/?utm_source=a&utm_source=b").dims["utm_source"] == "a"


def test_case_is_kept_unless_the_site_says_otherwise() -> None:
    url = "/?utm_source=Google"
    assert admitted(url=url).dims["utm_source"] == "Google"
    assert admitted(url=url, site="lower").dims["utm_source"] == "google"
    assert admitted(utm_source="Google", site="lower").dims["utm_source"] == "google"


def test_only_what_differs_from_the_defaults_is_stamped() -> None:
    assert admitted().dims == {}
    dims = admitted(url="/?utm_source=(direct)&utm_medium=(none)").dims
    assert dims == {"landing_page": "/", "utm_source": "(direct)"}
    assert set(admitted(replace(SENDER, user_agent=DESKTOP)).dims) <= set(DIMENSIONS)


# --- source, medium, channel ----------------------------------------------------------------


def test_utm_beats_click_id_beats_referrer_beats_direct() -> None:
    google = "https://www.google.com/"
    assert origin("/?utm_source=news&utm_medium=email&gclid=1", google) == (
        "news",
        "email",
        "Email",
        True,
    )
    assert origin("/?gclid=1&utm_campaign=c", google) == ("google", "cpc", "Paid Search", True)
    assert origin("/", google) == ("google", "organic", "Organic Search", True)
    assert origin("/") == ("(direct)", "(none)", "(direct)", False)
    assert origin("/?utm_source=partner") == ("partner", "(none)", "Unassigned", True)
    assert origin("/?utm_medium=email") == ("(none)", "email", "Email", True)


@pytest.mark.parametrize("network", CLICK_NETWORKS)
def test_a_networks_click_id_marks_the_network_and_keeps_its_case(network: str) -> None:
    for event in (admitted(url=f"/?{network}=AbC%2B-_1"), admitted(**{network: "AbC+-_1"})):
        assert (event.click_id, event.click_network) == ("AbC+-_1", network)
        assert event.dims["click_network"] == network
        assert (event.dims["source"], event.dims["medium"]) == CLICK_SOURCES[network]
        assert event.arrival


def test_a_click_id_of_nobody_we_know_is_kept_without_a_network() -> None:
    event = admitted(click_id="CLICK-1")
    assert (event.click_id, event.click_network, event.arrival) == ("CLICK-1", "", False)
    assert admitted(url="/?click_id=CLICK-1").arrival


@pytest.mark.parametrize(
    ("referrer", "expected"),
    [
        ("https://www.google.co.uk/", ("google", "organic", "Organic Search")),
        ("https://www.bing.com/search?q=x", ("bing", "organic", "Organic Search")),
        ("https://de.search.yahoo.com/", ("yahoo", "organic", "Organic Search")),
        ("https://duckduckgo.com/", ("duckduckgo", "organic", "Organic Search")),
        ("https://l.facebook.com/l.php", ("facebook", "social", "Organic Social")),
        ("https://t.co/abc", ("twitter", "social", "Organic Social")),
        ("https://out.reddit.com/", ("reddit", "social", "Organic Social")),
        ("https://m.youtube.com/watch", ("youtube", "video", "Organic Video")),
        ("https://www.amazon.de/", ("amazon", "shopping", "Organic Shopping")),
        ("https://mail.google.com/", ("gmail", "email", "Email")),
        ("https://docs.google.com/d", ("docs.google.com", "referral", "Referral")),
        ("https://www.blog.example/post", ("blog.example", "referral", "Referral")),
        ("https://google.attacker.io/", ("google.attacker.io", "referral", "Referral")),
        ("https://notfacebook.com/", ("notfacebook.com", "referral", "Referral")),
        ("https://x.ai/", ("x.ai", "referral", "Referral")),
        (
            "android-app://com.google.android.googlequicksearchbox/",
            ("google", "organic", "Organic Search"),
        ),
        ("android-app://com.twitter.android/", ("twitter", "social", "Organic Social")),
    ],
)
def test_a_referrer_is_resolved(referrer: str, expected: tuple[str, str, str]) -> None:
    assert origin("https://shop.example/", referrer) == (*expected, True)


@pytest.mark.parametrize(
    "referrer",
    [
        "https://shop.example/cart",
        "https://www.shop.example/",
        "https://checkout.shop.example:8443/",
        "https://www.paypal.com/pay",
        "https://hooks.stripe.com/3ds",
        "nonsense",
        "",
    ],
)
def test_the_sites_own_pages_and_payment_providers_are_no_arrival(referrer: str) -> None:
    assert origin("https://shop.example/", referrer) == ("(direct)", "(none)", "(direct)", False)
    assert origin("https://shop.example/?gclid=1", referrer)[3]
    assert origin("https://shop.example/?utm_campaign=c", referrer)[3]


def test_without_configured_domains_the_pages_own_host_is_the_site() -> None:
    assert not origin("https://www.bare.example/b", "https://bare.example/a", site="bare")[3]
    assert origin("https://bare.example/b", "https://bar.example/a", site="bare")[3]


def test_the_referring_domain_is_stamped_without_www() -> None:
    event = admitted(referrer="https://www.Blog.example:8080/post?user=me#x")
    assert event.dims["referrer_domain"] == "blog.example"
    assert event.referrer == "https://www.Blog.example:8080/post"


@pytest.mark.parametrize(
    ("source", "medium", "campaign", "channel"),
    [
        ("(direct)", "(none)", "", "(direct)"),
        ("google", "cpc", "cross-network-x", "Cross-network"),
        ("amazon", "cpc", "", "Paid Shopping"),
        ("google", "ppc", "my-shop", "Paid Shopping"),
        ("google", "cpc", "workshop", "Paid Search"),
        ("Bing", "CPC", "", "Paid Search"),
        ("www.google.de", "paidsearch", "", "Paid Search"),
        ("fb", "paid_social", "", "Paid Social"),
        ("instagram.com", "cpm", "", "Paid Social"),
        ("youtube", "cpv", "", "Paid Video"),
        ("youtube", "cpc", "", "Paid Video"),
        ("adnet", "banner", "", "Display"),
        ("adnet", "cpm", "", "Display"),
        ("adnet", "retargeting", "", "Paid Other"),
        ("ebay", "x", "", "Organic Shopping"),
        ("somewhere", "x", "shopping", "Organic Shopping"),
        ("twitter", "organic", "", "Organic Social"),
        ("blog", "social-media", "", "Organic Social"),
        ("vimeo", "", "", "Organic Video"),
        ("somewhere", "some-video", "", "Organic Video"),
        ("google", "", "", "Organic Search"),
        ("somewhere", "organic", "", "Organic Search"),
        ("somewhere", "referral", "", "Referral"),
        ("somewhere", "link", "", "Referral"),
        ("newsletter", "email", "", "Email"),
        ("e-mail", "", "", "Email"),
        ("partner", "affiliate", "", "Affiliates"),
        ("spotify", "audio", "", "Audio"),
        ("somewhere", "sms", "", "SMS"),
        ("firebase", "x", "", "Mobile Push Notifications"),
        ("somewhere", "web-push", "", "Mobile Push Notifications"),
        ("newsletter", "(none)", "", "Unassigned"),
        ("x", "referral", "", "Organic Social"),
    ],
)
def test_the_channel_rules_decide_in_order(
    source: str, medium: str, campaign: str, channel: str
) -> None:
    assert channel_of(source, medium, campaign) == channel


def test_a_source_is_known_by_brand_and_by_host() -> None:
    assert kind_of_source("LinkedIn") is Kind.SOCIAL
    assert kind_of_source("m.facebook.com") is Kind.SOCIAL
    assert kind_of_source("newsletter") is None
    assert kind_of_source("blog.example") is None
    assert site_of_host("facebook.com.evil.example")[1] is Kind.REFERRAL


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "path", "kept"),
    [
        ("https://Shop.Example/a%20b?q=1#f", "shop.example", "/a b", "https://Shop.Example/a%20b"),
        ("https://shop.example", "shop.example", "/", "https://shop.example/"),
        ("https://u:p@shop.example:8/x", "shop.example", "/x", "https://shop.example:8/x"),
        ("https://[2001:db8::1]:8/x", "[2001:db8::1]", "/x", "https://[2001:db8::1]:8/x"),
        ("/pricing?x=1", "", "/pricing", "/pricing"),
        ("about:blank", "", "", ""),
        ("nonsense", "", "", ""),
        ("?utm_source=a&email=me%40x.y", "", "", "?utm_source=a"),
    ],
)
def test_an_address_is_taken_apart_and_kept_without_what_names_a_person(
    url: str, host: str, path: str, kept: str
) -> None:
    place = read_place(url)
    assert (place.host, place.path, place.kept) == (host, path, kept)


@given(st.text() | st.from_regex(r"https?://[^ ]*"))
def test_no_text_makes_an_address_raise(url: str) -> None:
    admitted(url=url, referrer=url)


def test_a_pixels_page_is_its_referer_when_it_is_the_sites() -> None:
    page = replace(SENDER, page="https://shop.example/landing?utm_source=x")
    assert admitted(page).dims["utm_source"] == "x"
    assert admitted(page).dims["landing_page"] == "/landing"
    assert "landing_page" not in admitted(replace(SENDER, page="https://ads.example/a")).dims
    elsewhere = replace(SENDER, page="https://publisher.example/article")
    assert "landing_page" not in admitted(elsewhere, type="impression", site="bare").dims
    assert admitted(elsewhere, site="bare").dims["landing_page"] == "/article"


# --- clients --------------------------------------------------------------------------------

PHONE = (
    "Mozilla/5.0 (Linux; Android 13; Pixel 7) AppleWebKit/537.36 Chrome/126.0 Mobile Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like "
    "Gecko) Version/17.0 Mobile/15E148 Safari/604.1"
)


@pytest.mark.parametrize(
    ("user_agent", "device", "browser", "system"),
    [
        (DESKTOP, "desktop", "Chrome", "Windows"),
        (PHONE, "mobile", "Chrome", "Android"),
        (IPHONE, "mobile", "Mobile Safari", "iOS"),
        (IPHONE.replace("iPhone;", "iPad;"), "tablet", "Mobile Safari", "iOS"),
        (PHONE.replace(" Mobile", ""), "tablet", "Chrome", "Android"),
        ("Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) Chrome/63 TV Safari/537.36", "tv", "", ""),
        (
            "Mozilla/5.0 (X11; Linux x86_64; rv:126.0) Gecko/20100101 Firefox/126.0",
            "desktop",
            "",
            "",
        ),
        ("", "", "", ""),
        ("something", "", "", ""),
    ],
)
def test_a_device_is_classed(user_agent: str, device: str, browser: str, system: str) -> None:
    found = read_agent(user_agent)
    assert (found.device, found.bot) == (device, "")
    if browser:
        assert (found.browser, found.os) == (browser, system)


@pytest.mark.parametrize(
    ("user_agent", "rule"),
    [
        (
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "crawler:Googlebot",
        ),
        ("facebookexternalhit/1.1", "crawler:facebookexternalhit"),
        (DESKTOP.replace("Chrome/", "HeadlessChrome/"), "headless"),
        ("Go-http-client/1.1 (compatible; AdsBot-Google)", "crawler:AdsBot-Google"),
    ],
)
def test_a_bot_is_stamped_with_the_rule(user_agent: str, rule: str) -> None:
    event = admitted(replace(SENDER, user_agent=user_agent))
    assert event.bot.startswith(rule)
    assert event.dims["device"] == "bot"


@pytest.mark.parametrize(
    "user_agent",
    "curl/8.5.0 Wget/1.21 HTTPie/3.2 python-requests/2.32 okhttp/4.9 Go-http-client/1.1 axios/1.7 "
    "node-fetch/1.0 Java/17.0.1 Apache-HttpClient/4.5 PostmanRuntime/7.3 python-httpx/0.27 "
    "GuzzleHttp/7 node undici".split(),
)
def test_a_tool_that_somebody_sends_with_is_no_bot(user_agent: str) -> None:
    event = admitted(replace(SENDER, user_agent=user_agent))
    assert (event.bot, "device" in event.dims) == ("", False)


def test_a_prefetch_is_no_visit() -> None:
    assert admitted(replace(SENDER, is_prefetch=True, user_agent=DESKTOP)).bot == "prefetch"


def test_a_long_user_agent_is_cut_before_the_patterns_see_it() -> None:
    assert admitted(replace(SENDER, user_agent="x" * 100_000 + "Googlebot/2.1")).bot == ""


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de-DE"),
        ("pt_br", "pt-BR"),
        ("zh-hant-tw;q=1", "zh-Hant-TW"),
        ("EN", "en"),
        ("*", ""),
        ("", ""),
        ("<script>", ""),
        ("a" * 36, ""),
    ],
)
def test_the_first_accepted_language_counts(accepted: str, language: str) -> None:
    assert read_language(accepted) == language


def test_experiment_and_variant_are_dimensions() -> None:
    dims = admitted(experiment="price", variant="B").dims
    assert (dims["experiment"], dims["variant"]) == ("price", "B")
