"""Tests of the page: its files, and in a browser where there is one (Debian's chromium)."""

import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from rustgpt.serve.app import PAGE
from rustgpt.text.char_tokenizer import CharTokenizer

from .conftest import eventually, small_model

FOLDER = files("rustgpt.serve").joinpath("page")
SCRIPTS = ("app.js", "api.js", "store.js", "words.js")


def test_the_files_are_small_and_from_here_alone(served):
    assert {name for name, _ in PAGE.values()} == {file.name for file in FOLDER.iterdir()}
    texts = {}
    for path, (name, kind) in PAGE.items():
        answer = served.ask("GET", path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        texts[name] = answer.body.decode()
    assert sum(map(len, texts.values())) < 100_000
    for name, text in texts.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(",
                     "Function(", "onclick", "<style", "style=", "setHTML"):  # fmt: skip
            assert word not in text, (name, word)


def test_every_word_is_there_in_both_languages():
    text = FOLDER.joinpath("words.js").read_text(encoding="utf-8")
    english, chinese = (set(re.findall(r"(?m)[ {](\w+): \"", part)) for part in text.split("zh: {"))
    assert english == chinese
    page = FOLDER.joinpath("index.html").read_text(encoding="utf-8")
    wanted = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', page))
    script = FOLDER.joinpath("app.js").read_text(encoding="utf-8")
    wanted |= set(re.findall(r"(?:words\(\)|text)\.(\w+)", script)) - {
        "textContent", "append", "tabIndex", "addEventListener", "replaceChildren", "classList"
    }  # fmt: skip
    assert wanted <= english


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, which reports what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--lang=en"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    one = webdriver.Chrome(options=options, service=service)
    yield one
    one.quit()


class Page:
    """The page of a server in a browser."""

    def __init__(self, browser: Any, served: Any) -> None:
        self.browser, self.served = browser, served
        browser.get(f"http://localhost:{served.port}/")
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.reload()

    def reload(self) -> None:
        self.browser.refresh()
        eventually(lambda: self.of("model").text == "small")

    def of(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def ask(self, question: str) -> None:
        self.of("question").send_keys(question + "\n")
        eventually(lambda: self.of("send").is_displayed() and not self.of("question").text)

    def texts(self) -> list[str]:
        found = self.all(".message .text")
        return [one.get_property("textContent") for one in found]

    def set(self, name: str, value: Any) -> None:
        script = """const one = document.getElementById(arguments[0]);
            if (one.type === "checkbox") { one.checked = arguments[1]; }
            else { one.value = arguments[1]; }
            one.dispatchEvent(new Event("input")); one.dispatchEvent(new Event("change"));"""
        self.browser.execute_script(script, name, value)

    def press(self, text: str) -> None:
        [*_, last] = [b for b in self.all("button") if b.text == text]
        last.click()


def addresses(browser: Any) -> set[str]:
    """Return what the browser has asked for."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }


@pytest.fixture
def page(browser: Any, served: Any) -> Page:
    return Page(browser, served)


def answer_to(served: Any, *texts: str, **fields: Any) -> str:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    fields = {"messages": messages, "max_tokens": None, **fields}
    found: str = served.chat(**fields).json["choices"][0]["message"]["content"]
    return found


def test_a_conversation(page, served):
    page.set("max_tokens", "6")
    page.ask("abc")
    first = answer_to(served, "abc", max_tokens=6)
    assert page.texts() == ["abc", first]
    page.ask("xyz")
    second = answer_to(served, "abc", first, "xyz", max_tokens=6)
    assert page.texts() == ["abc", first, "xyz", second]
    page.press("Retry")
    eventually(lambda: page.of("send").is_displayed())
    assert page.texts() == ["abc", first, "xyz", second]
    page.reload()  # the browser has kept it
    assert page.texts() == ["abc", first, "xyz", second]
    page.all(".user .buttons button")[0].click()
    field = page.all(".message textarea")[0]
    field.clear()
    field.send_keys("hgf\n")
    eventually(lambda: page.of("send").is_displayed() and not page.all(".message textarea"))
    assert page.texts() == ["hgf", answer_to(served, "hgf", max_tokens=6)]
    page.of("new").click()
    assert page.texts() == []
    assert len(page.all("#chats option")) == 2
    page.of("delete").click()
    assert len(page.texts()) == 2


def test_the_oldest_turns_are_dropped_in_sight(page):
    page.set("max_tokens", "10")
    for question in ("abcabc", "xyzxyz", "hgfhgf"):
        page.ask(question)
    dropped = page.all(".forgotten")
    assert len(dropped) >= 2
    assert page.all(".divider")[0].text == "The model does not see what is above any more."
    assert not page.of("error").is_displayed()
    page.ask("a" * 100)
    assert page.of("error").text == "The question is too long for this model."
    assert page.of("question").get_property("value") == "a" * 100


def test_token_probabilities(page):
    page.set("max_tokens", "6")
    page.set("probabilities", True)
    page.ask("abc")
    tokens = page.all(".token")
    assert len(tokens) == 6
    page.browser.execute_script("arguments[0].dispatchEvent(new Event('mouseenter'))", tokens[2])
    lines = page.of("tip").text.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(" %") for line in lines)
    page.browser.execute_script("arguments[0].dispatchEvent(new Event('mouseleave'))", tokens[2])
    assert not page.of("tip").is_displayed()
    text = page.all(".assistant .text")[0]
    text.send_keys("\ue014")  # the right arrow
    assert page.of("tip").is_displayed()


def test_stop(browser, serve):
    model = small_model(max_seq_len=1024)
    one = serve(model)
    page = Page(browser, one)
    model.pause = 0.05
    page.of("question").send_keys("abc\n")
    eventually(lambda: len(page.texts()) == 2 and len(page.texts()[1]) > 3)
    page.of("stop").click()
    eventually(lambda: page.of("send").is_displayed())
    assert page.of("state").text == "Stopped."
    assert 3 < len(page.texts()[1]) < 200
    eventually(lambda: not one.server.service.worker._engine.requests)


def test_the_key_is_asked_for(browser, serve):
    key = "0123456789abcdef" * 4
    one = serve(key=key)
    browser.get(f"http://localhost:{one.port}/")
    eventually(lambda: browser.find_element("id", "error").is_displayed())
    assert "wants a key" in browser.find_element("id", "error").text
    browser.find_element("id", "key").send_keys(key + "\t")
    eventually(lambda: browser.find_element("id", "model").text == "small")
    assert key not in browser.execute_script("return JSON.stringify(localStorage)")


def test_languages_and_colours(page):
    page.set("language", "zh")
    assert page.of("send").text == "发送"
    assert page.browser.execute_script("return document.documentElement.lang") == "zh"
    back = "return getComputedStyle(document.body).backgroundColor"
    page.set("theme", "light")
    light = page.browser.execute_script(back)
    page.set("theme", "dark")
    assert page.browser.execute_script(back) != light


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_has_names(page, width):
    size = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.of("toggle").click()
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.browser.execute_script(wide) == 0
    for one in page.all("button, input, select, textarea"):
        if one.is_displayed():
            assert one.accessible_name, one.get_attribute("id")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# What a model may write to a page
ATTACKS = [
    "<script>hit(1)</script>", "<img src=x onerror=hit(1)>", "<svg onload=hit(1)>",
    "<iframe src='javascript:parent.hit(1)'></iframe>", "<a href='javascript:hit(1)'>x</a>",
    "<img src='http://127.0.0.1:9/leak'>", "</div></body><script>hit(1)</script>",
    "<style>@import 'http://127.0.0.1:9/leak';</style>", "![x](http://127.0.0.1:9/leak)",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/leak'>",
    "<object data='http://127.0.0.1:9/leak'></object>", "<base href='http://127.0.0.1:9/'>",
    "<link rel=stylesheet href='http://127.0.0.1:9/leak'>", "${hit(1)}{{hit(1)}}",
    "data: [DONE]\n\ndata: {}", "\u2028<script>hit(1)</script>", "\x1b[2J<b onclick=hit(1)>x</b>",
    "<body onload=hit(1)>", "<details open ontoggle=hit(1)>", "<input autofocus onfocus=hit(1)>",
]  # fmt: skip


def test_text_of_a_model_is_only_text(browser, serve):
    """200 texts: each attack in ten forms, as a model writes them, character by character."""
    model = small_model(max_seq_len=512)
    model.tokenizer = CharTokenizer.train(["".join(ATTACKS) + "User: Assistant: 0123"], None)
    model = type(model)(model.config, model.tokenizer)
    page = Page(browser, serve(model))
    addresses(browser)
    browser.execute_script("window.hits = 0; window.hit = () => { window.hits += 1; }")
    mixed = [lambda t: t, str.upper, lambda t: t * 2, lambda t: f"a{t}", lambda t: f"{t}\n{t}"]
    made = [form(attack) for attack in ATTACKS for form in mixed]
    ask = """const [text, tells, done] = arguments;
        document.getElementById("probabilities").checked = tells;
        document.getElementById("probabilities").dispatchEvent(new Event("change"));
        const real = window.fetch;
        window.fetch = (path, options) => {
          if (options?.body && path.startsWith("/v1/")) {
            const body = { ...JSON.parse(options.body), choices: [text], max_tokens: 500 };
            options.body = JSON.stringify(body);
          }
          return real(path, options);
        };
        document.getElementById("new").click();
        document.getElementById("question").value = "<img src=x onerror=hit(1)>";
        document.getElementById("send").click();
        const timer = setInterval(() => {
          if (document.getElementById("send").hidden) return;
          clearInterval(timer);
          window.fetch = real;
          const found = document.querySelector(".assistant .text");
          done(found ? [found.textContent, document.querySelectorAll("#log img, #log script, " +
            "#log svg, #log a, #log iframe, #log style, #log object").length] : null);
        }, 5);"""
    for tells in (False, True):
        for text in made:
            assert browser.execute_async_script(ask, text, tells) == [text.strip(), 0]
    assert browser.execute_script("return window.hits") == 0
    asked = addresses(browser)
    assert asked
    assert all(one.startswith(f"http://localhost:{page.served.port}/") for one in asked)
