"""URLs taken apart, addresses told apart."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dcclip_cli.curation.fetch import Fault, FetchOptions, read_url
from dcclip_cli.curation.fetch.client import is_public


def test_a_url_has_one_normal_form() -> None:
    url = " HTTP://Example.COM/a/../b c.jpg?q=猫#part\n"
    assert read_url(url).url == "http://example.com:80/b%20c.jpg?q=%E7%8C%AB"
    assert read_url("https://例子.测试").url == "https://xn--fsqu00a.xn--0zwm56d:443/"
    assert read_url("http://[2001:DB8::1]:8080/x").url == "http://[2001:db8::1]:8080/x"


NOT_WEB = "cat.jpg //x.example/cat.jpg ftp://x.example/ file:///etc/passwd data:image/png;base64,AAAA"
NOT_WEB += " javascript:alert(1) gopher://x:1/ httpss://x/ 猫"


MALFORMED = "http:// http:///cat.jpg http://a..b/ http://x.example:0/ http://x.example:99999/ http://x.example:80a/"
MALFORMED += " http://%00/ http://me@x.example/ http://me:secret@x.example/ http://x.example\\@y.example/ http://[::1/"
MALFORMED += " http://[fe80::1%25eth0]/ http://a<b/ http://１２７.0.0.1/"
LONG = [f"http://{'a' * 64}.example/", "http://x.example/" + "a" * 8_000]


@pytest.mark.parametrize(
    ("url", "reason"),
    [(url, "url-scheme") for url in ("", *NOT_WEB.split())]
    + [(url, "url-malformed") for url in (*MALFORMED.split(), *LONG, "http://a b/", "http://x.example\r\nHost: y/")],
)
def test_a_url_is_of_the_web_and_well_formed(url: str, reason: str) -> None:
    with pytest.raises(Fault, match=reason):
        read_url(url)


@given(st.one_of(st.text(), st.builds("http://{}{}".format, st.text(), st.text())))
def test_any_text_is_a_url_or_a_fault_that_can_be_stored(text: str) -> None:
    try:
        target = read_url(text)
    except Fault as fault:
        assert fault.drop.reason in ("url-scheme", "url-malformed")
        fault.drop.detail.encode()
    else:
        assert target.url.isascii()
        assert target.url.isprintable()
        assert read_url(target.url) == target


PUBLIC = "8.8.8.8 223.5.5.5 2606:4700::1111 2400:3200::1 64:ff9b::808:808 ::ffff:8.8.8.8"
OTHER = "0.1.2.3 10.1.1.1 100.127.0.1 127.9.9.9 169.254.169.254 172.31.0.1 192.0.0.170 192.0.2.1 192.168.0.1 198.19.0.1"
OTHER += " 203.0.113.1 233.252.0.1 250.0.0.1 192.88.99.1 :: ::1 ::ffff:10.0.0.1 ::ffff:0:7f00:1 64:ff9b::a00:1"
OTHER += " 64:ff9b:1::808:808 100::1 2001::1 2001:db8::1 2002:808:808::1 3fff::1 fd00::1 fe80::1%eth0 fec0::1 ff05::1"


@pytest.mark.parametrize("address", f"{PUBLIC} {OTHER}".split())
def test_only_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address)) == (address in PUBLIC.split())


def test_hosts_are_allowed_by_name_in_lower_case() -> None:
    hosts = ("Media.local", "127.0.0.1:8000", "[::1]:80", "[FC00::1]")
    assert FetchOptions(allow_hosts=hosts).allow_hosts == ("media.local", "127.0.0.1:8000", "[::1]:80", "[fc00::1]")


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow_hosts": ["http://media.local/"]},
        {"allow_hosts": [""]},
        {"allow_hosts": ["*"]},
        {"timeout_s": 0},
        {"user_agent": "dcclip\r\nX: y"},
        {"user_agent": ""},
        {"user_agent": "猫"},
        {"max_bytes": 64000001},
        {"allow_networks": ["10.0.0.1/8"]},
        {"proxy": "http://proxy"},
    ],
)
def test_options_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FetchOptions.model_validate(wrong)
