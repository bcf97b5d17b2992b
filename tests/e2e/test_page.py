"""The chat page in real headless Chromium: two tabs as two users see sent, delivered and read."""

import shutil

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture
def browser(tmp_path):
    options = Options()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=900,700", f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "/usr/bin/chromedriver"))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


def wait(driver, condition, seconds=15):
    # A page may be exchanged for the next while the condition looks at it; then it looks again.
    passing = (NoSuchElementException, StaleElementReferenceException)
    return WebDriverWait(driver, seconds, poll_frequency=0.1, ignored_exceptions=passing).until(condition)


def online(driver):
    return driver.find_element(By.ID, "state").get_attribute("data-state") == "online"


def write(driver, text):
    driver.find_element(By.ID, "text").send_keys(text)
    driver.find_element(By.ID, "send").click()


def status_of(text):
    """Finds a message of ours by its words, and its status."""

    def find(driver):
        for row in driver.find_elements(By.CSS_SELECTOR, ".message.mine"):
            if text in row.text:
                return row.get_attribute("data-status")
        return None

    return find


def shows(text):
    return lambda driver: any(text in row.text for row in driver.find_elements(By.CSS_SELECTOR, ".message:not(.mine)"))


def test_two_tabs_exchange_messages_and_see_sent_delivered_and_read(dev, browser, tmp_path):
    # Alone: bob has no device online, so the message is sent and no more.
    browser.get(dev.ready["http"] + "/?user=alice")
    alice = browser.current_window_handle
    wait(browser, online)
    write(browser, "hello bob")
    wait(browser, lambda driver: status_of("hello bob")(driver) == "sent")

    # Bob comes, finds what he missed, and looks at it.
    browser.switch_to.new_window("window")
    browser.get(dev.ready["http"] + "/?user=bob")
    bob = browser.current_window_handle
    wait(browser, online)
    wait(browser, shows("hello bob"))
    write(browser, "hello alice")

    browser.switch_to.window(alice)
    wait(browser, lambda driver: status_of("hello bob")(driver) == "read")
    wait(browser, shows("hello alice"))
    browser.save_screenshot(str(tmp_path / "alice.png"))

    # Bob has the page open but nobody looks at it: delivered, not read.
    browser.switch_to.window(bob)
    wait(browser, lambda driver: status_of("hello alice")(driver) == "read")
    browser.execute_script("settings.never_read = true")
    browser.switch_to.window(alice)
    write(browser, "are you there?")
    wait(browser, lambda driver: status_of("are you there?")(driver) == "delivered")


def test_page_reconnects_by_itself_and_sends_what_was_written_meanwhile(dev, browser):
    browser.get(dev.ready["http"] + "/?user=alice")
    wait(browser, online)
    browser.find_element(By.ID, "drop").click()
    wait(browser, lambda driver: not online(driver))
    write(browser, "written while offline")
    wait(browser, lambda driver: status_of("written while offline")(driver) in ("sent", "delivered", "read"), 20)
    assert online(browser)
    assert sum("written while offline" in row.text for row in browser.find_elements(By.CSS_SELECTOR, ".message")) == 1


def use_account(driver, button, user_id, password, other):
    """Fills in the form and presses one of its buttons."""
    driver.find_element(By.ID, "change").click()
    for field, text in (("name", user_id), ("password", password), ("with", other)):
        entry = wait(driver, lambda driver: driver.find_element(By.ID, field))
        entry.clear()
        entry.send_keys(text)
    driver.find_element(By.ID, button).click()


def is_talking(user_id, other):
    def find(driver):
        heading = driver.find_element(By.TAG_NAME, "h1").text
        return online(driver) and heading == f"Millrace: {user_id} talks to {other}"

    return find


def test_people_register_and_log_in_with_a_password_and_stay_so_after_a_reload(dev, browser):
    ada, ben = dev.user(), dev.user()
    browser.get(dev.ready["http"] + "/")
    first = browser.current_window_handle
    wait(browser, online)
    use_account(browser, "register", ada, "the engine weaves", ben)
    wait(browser, is_talking(ada, ben))
    write(browser, "are you new here, too?")

    browser.switch_to.new_window("window")
    browser.get(dev.ready["http"] + "/")
    wait(browser, online)
    use_account(browser, "register", ben, "another password", ada)
    wait(browser, is_talking(ben, ada))
    wait(browser, shows("are you new here, too?"))
    browser.refresh()
    wait(browser, is_talking(ben, ada))
    wait(browser, shows("are you new here, too?"))

    # A wrong password is said in words, a right one opens the same conversation, and none is kept in the page.
    browser.switch_to.new_window("window")
    browser.get(dev.ready["http"] + "/")
    wait(browser, online)
    use_account(browser, "log-in", ada, "a guess", ben)
    problem = browser.find_element(By.ID, "problem")
    wait(browser, lambda _: problem.text == "The name or the password is wrong.")
    browser.find_element(By.ID, "cancel").click()
    use_account(browser, "log-in", ada, "the engine weaves", ben)
    wait(browser, is_talking(ada, ben))
    wait(browser, lambda driver: status_of("are you new here, too?")(driver) == "read")
    assert "the engine weaves" not in browser.execute_script("return JSON.stringify(sessionStorage)")
    browser.switch_to.window(first)
    wait(browser, lambda driver: status_of("are you new here, too?")(driver) == "read")
