"""The reports in a real browser: every sort button and link clicked, by mouse and by keyboard.

Needs Chromium with its driver (Debian: chromium, chromium-driver) and selenium from PyPI; skipped where one is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.evaluation.comparison import comparison_content
from dekr_infer.evaluation.report import drawer, report_content, write_report
from tests.support.coco_files import write_images
from tests.support.images import colourful, encode
from tests.support.planted import SIZE, moved, perfect, write_people

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"),
]
NAMES = ("a.jpg", "b.jpg", "c.jpg")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report and a comparison, in one folder."""
    root = tmp_path_factory.mktemp("pages")
    data = write_people(root, *NAMES)
    write_images(root, {name: encode(colourful(SIZE, seed), ".jpg") for seed, name in enumerate(NAMES)})
    files = ImageFiles(image_source(root, "val2017"))
    ids, worse = [image.id for image in data.images], perfect()
    moved(worse[0], 9, 10, by=-300)
    run = {"settings": {"flip": True, "NMS_THRE": 0.05}, "versions": {"numpy": "2"}, "sha256": {}}
    content = report_content(data, worse, ids, run=run, times={1000: [9.0, 10.0], 999: [100.0]})
    write_report(root / "report.html", content, title="A run", draw=drawer(data, files, worse))
    content = comparison_content(data, (perfect(), worse), ids, resamples=10)
    content |= {"names": ["a", "b"], "verdict": "It moved.", "causes": [{"name": "x", "first": "1", "second": "2"}]}
    draw = drawer(data, files, perfect(), worse)
    write_report(root / "compare.html", content, title="Two runs", draw=draw, template="compare.html")
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=["report.html", "compare.html"])
def page(request, pages, browser) -> Iterator[Any]:
    browser.get((pages / request.param).as_uri())
    yield browser
    assert browser.get_log("browser") == [], "nothing is refused, missing or wrong"


def column(browser: Any, button: Any) -> list[str]:
    """The texts of the column below a sort button."""
    script = """const header = arguments[0].closest("th"), place = [...header.parentElement.cells].indexOf(header);
    return [...header.closest("table").tBodies[0].rows].map(row => row.cells[place].innerText.split("\\n")[0]);"""
    return browser.execute_script(script, button)


def numbers_in(texts: list[str]) -> list[float]:
    """The texts that are numbers; what is not known is "-"."""
    return [float(text) for text in texts if text.lstrip("+-").replace(".", "", 1).isdigit()]


def test_every_sort_button_sorts_both_ways(page):
    buttons = page.find_elements("css selector", "th button")
    assert len(buttons) > 10
    for button in buttons:
        before, header = column(page, button), button.find_element("xpath", "..")
        for state in ("ascending", "descending"):
            button.click()
            assert header.get_attribute("aria-sort") == state
            after, is_reversed = column(page, button), state == "descending"
            assert sorted(after) == sorted(before)
            assert numbers_in(after) == sorted(numbers_in(before), reverse=is_reversed)
            if not any(character.isdigit() for text in after for character in text):
                assert after == sorted(before, reverse=is_reversed)


def test_every_link_leads_to_its_section(page):
    links = page.find_elements("css selector", "a")
    assert len(links) >= 5
    for link in links:
        link.click()
        target = link.get_attribute("href").partition("#")[2]
        top = page.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().top", target)
        assert top < 900 and page.execute_script("return location.hash") == f"#{target}"
        page.execute_script("window.scrollTo(0, 0)")


def test_an_image_is_enlarged_and_closed_by_mouse_and_by_keyboard(page):
    dialog = page.find_element("css selector", "dialog")
    buttons = page.find_elements("css selector", ".images button")
    assert buttons
    for button in buttons:
        assert button.get_attribute("aria-label").startswith("Enlarge: Image ")
        button.click()
        assert dialog.get_attribute("open") and dialog.find_element("css selector", "img").size["width"] > 0
        dialog.find_element("css selector", "form button").click()
        assert not dialog.get_attribute("open")
    buttons[0].send_keys("\ue007")  # Enter
    assert dialog.get_attribute("open")
    webdriver.ActionChains(page).send_keys("\ue00c").perform()  # Escape
    assert not dialog.get_attribute("open")


def test_the_whole_page_can_be_reached_with_the_tab_key(page):
    wanted = len(page.find_elements("css selector", "a, th button, .images button"))
    page.execute_script("document.activeElement.blur()")
    reached = set()
    for _ in range(wanted + 20):
        webdriver.ActionChains(page).send_keys("\ue004").perform()
        focused = page.switch_to.active_element
        if focused.tag_name in ("a", "button"):
            reached.add(focused.id)
    assert len(reached) == wanted


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_the_screen_and_texts_differ_from_the_paper(page, width, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        colours = page.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        ink, paper = (sum(map(int, text.strip("rgb()").split(","))) for text in colours)
        assert (ink < 150 and paper > 600) if scheme == "light" else (ink > 600 and paper < 150)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_report_prints(pages, browser):
    browser.get((pages / "report.html").as_uri())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(printed) > 50_000
