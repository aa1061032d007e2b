"""`tracker import`: real numbers, the same again, shuffled, and with bad rows in between."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

from conftest import until

RANGE = "from=2019-10-01&to=2019-10-02"
METRICS = "views,conversions:add_to_cart,orders,revenue,visitors,sessions,converters"
SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/rees46-2019-oct-sample.csv"
SHIPPED = Path(__file__).resolve().parents[2] / "deploy/mappings/rees46.toml"
HEADER = (
    "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
).split(",")
EXPECTED = {
    "views": 17_055,
    "conversions:add_to_cart": 165,
    "orders": 214,
    "revenue": {"amount": "59442.63", "currency": "USD"},
    "visitors": 4_504,
    "sessions": 5_067,
    "converters": 193,
}


def shop_rows(seed=46, visitors=60):
    """Make a day of a shop in the shape of the REES46 files, two of its rows twice."""
    chance = random.Random(seed)
    rows = []
    for visitor in range(visitors):
        second = chance.randrange(80_000)
        steps = ["view", "view"]
        steps += ["cart"] if chance.random() < 0.4 else []
        steps += ["purchase"] if chance.random() < 0.3 else []
        for step in steps:
            second += chance.randrange(1, 600)
            hours, rest = divmod(second, 3600)
            time = f"2019-10-01 {hours:02}:{rest // 60:02}:{rest % 60:02} UTC"
            price = f"{chance.randrange(100, 90_000) / 100:.2f}"
            rows.append([time, step, "1", "2", "", "acme", price, f"u{visitor}", f"s{visitor}"])
    rows.sort(key=lambda row: row[0])
    return [*rows, rows[0], rows[-1]]


def write(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def expected_of(rows):
    steps = [row[1] for row in rows]
    cents = sum(round(float(row[6]) * 100) for row in rows if row[1] == "purchase")
    return {
        "views": steps.count("view"),
        "conversions:add_to_cart": steps.count("cart"),
        "orders": steps.count("purchase"),
        "revenue": {"amount": f"{cents / 100:.2f}", "currency": "USD"},
        "visitors": len({row[7] for row in rows}),
        "sessions": len({(row[7], row[8]) for row in rows}),
        "converters": len({row[7] for row in rows if row[1] == "purchase"}),
    }


def reached(installation, funnel, site):
    steps = installation.get(f"/v1/funnels/{funnel}?site={site}&{RANGE}")["steps"]
    return [step["reached"] for step in steps]


def test_a_small_file_twice_shuffled_and_packed(up, tmp_path):
    rows = shop_rows()
    file = write(tmp_path / "shop.csv", rows)
    first = up.cli_json("import", file, "--site", "small", "--mapping", "rees46")
    assert (first["read"], first["accepted"], first["refused"]) == (len(rows), len(rows), {})
    assert (first["new"], first["duplicates"]) == (len(rows), 0)
    assert first["created_site"] is True
    until(lambda: up.totals(METRICS, "small", RANGE) == expected_of(rows), 5)

    # Also in the funnels, although the site did not exist before.
    assert reached(up, "purchase", "small")[0] == expected_of(rows)["visitors"]

    again = up.cli_json("import", file, "--site", "small", "--mapping", "rees46")
    assert (again["new"], again["duplicates"]) == (0, len(rows))
    packed = tmp_path / "other-name.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    third = up.cli_json("import", packed, "--site", "small", "--mapping", "rees46")
    assert (third["new"], third["duplicates"]) == (0, len(rows))
    assert up.totals(METRICS, "small", RANGE) == expected_of(rows)
    ledger = up.get("/v1/ledger?site=small")
    assert ledger["duplicate"] == 2 * len(rows)

    random.Random(7).shuffle(rows)
    shuffled = write(tmp_path / "shuffled.csv", rows)
    up.cli("import", shuffled, "--site", "mixed", "--mapping", "rees46")
    until(lambda: up.totals(METRICS, "mixed", RANGE) == expected_of(rows), 5)
    for funnel in ("checkout", "purchase"):
        assert reached(up, funnel, "mixed") == reached(up, funnel, "small")
    assert up.cli_json("reconcile")["equal"] is True


def test_identical_rows_are_one_with_dedupe(up, tmp_path):
    rows = shop_rows(seed=5)
    mapping = tmp_path / "mine.toml"
    mapping.write_text('dedupe = "row"\n' + SHIPPED.read_text())
    answer = up.cli_json(
        "import", write(tmp_path / "shop.csv", rows), "--site", "once", "--mapping", mapping
    )
    assert (answer["new"], answer["duplicates"]) == (len(rows) - 2, 2)
    unique = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    until(lambda: up.totals(METRICS, "once", RANGE) == expected_of(unique), 5)


def test_bad_rows_are_reported_counted_and_cost_no_other(up, tmp_path):
    rows = shop_rows(seed=6)
    bad = [
        ["yesterday", *rows[0][1:]],
        [rows[0][0], "dance", *rows[0][2:]],
        rows[0][:5],
        [*rows[0][:6], "much", *rows[0][7:]],
    ]
    bad[3][1] = "purchase"
    file = write(tmp_path / "shop.csv", [*rows[:10], *bad, *rows[10:]])
    answer = up.cli_json("import", file, "--site", "rough", "--mapping", "rees46")
    assert answer["accepted"] == len(rows)
    assert answer["refused"] == {"bad_row": 2, "bad_time": 1, "bad_value": 1}
    assert [one["row"] for one in answer["refused_rows"]] == [11, 12, 13, 14]
    until(lambda: up.totals(METRICS, "rough", RANGE) == expected_of(rows), 5)
    until(lambda: up.get("/v1/ledger?site=rough")["rejected"] == answer["refused"], 5)
    shown = up.cli("import", file, "--site", "rough", "--mapping", "rees46")
    assert "Row 11 refused (bad_time)" in shown.stderr
    assert f"0 are new, {len(rows)} were counted before." in shown.stdout


def test_a_site_that_an_import_created_takes_events_over_http(up, tmp_path):
    up.cli("import", write(tmp_path / "a.csv", shop_rows()), "--site", "fresh",
           "--mapping", "rees46")  # fmt: skip
    assert up.send({"site": "fresh", "type": "view"}) == 200
    assert up.send({"site": "nowhere", "type": "view"}) == 400


def test_a_wrong_mapping_changes_nothing(up, tmp_path):
    file = write(tmp_path / "shop.csv", [row[:8] for row in shop_rows()], HEADER[:8])
    found = up.cli("import", file, "--site", "never", "--mapping", "rees46", check=False)
    assert found.returncode == 1
    assert "no column 'user_session'; it has: event_time" in found.stderr
    assert up.send({"site": "never", "type": "view"}) == 400


# The sample lies beside the repository where the project is developed, and only there.
if SAMPLE.is_file():

    def test_the_real_sample_gives_the_known_numbers(up):
        answer = up.cli_json("import", SAMPLE, "--site", "rees", "--mapping", "rees46")
        assert (answer["read"], answer["new"]) == (17_434, 17_434)
        until(lambda: up.totals(METRICS, "rees", RANGE) == EXPECTED, 5)
        assert reached(up, "checkout", "rees") == [4_504, 111, 62]
        assert reached(up, "purchase", "rees") == [4_504, 192]
        again = up.cli_json("import", SAMPLE, "--site", "rees", "--mapping", "rees46")
        assert (again["new"], again["duplicates"]) == (0, 17_434)
        assert up.totals(METRICS, "rees", RANGE) == EXPECTED

    def test_the_real_sample_shuffled_and_with_its_identical_rows_as_one(up, tmp_path):
        with SAMPLE.open(newline="") as file:
            header, *rows = csv.reader(file)
        random.Random(11).shuffle(rows)
        shuffled = write(tmp_path / "shuffled.csv", rows, header)
        up.cli("import", shuffled, "--site", "mixed-rees", "--mapping", "rees46")
        until(lambda: up.totals(METRICS, "mixed-rees", RANGE) == EXPECTED, 5)
        assert reached(up, "checkout", "mixed-rees") == [4_504, 111, 62]
        mapping = tmp_path / "mine.toml"
        mapping.write_text('dedupe = "row"\n' + SHIPPED.read_text())
        up.cli("import", SAMPLE, "--site", "once-rees", "--mapping", mapping)
        steps = "views,conversions:add_to_cart,orders"
        expected = {"views": 17_051, "conversions:add_to_cart": 164, "orders": 214}
        until(lambda: up.totals(steps, "once-rees", RANGE) == expected, 5)
