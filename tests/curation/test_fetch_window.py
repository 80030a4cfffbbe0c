"""The order of downloads, with a function in place of the network."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dcclip_cli.curation.fetch import read_url
from dcclip_cli.curation.fetch.fetcher import fetch_in_order
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop

pytestmark = pytest.mark.timeout(60)


def candidates(*urls: str) -> Iterator[Candidate]:
    for number, url in enumerate(urls):
        yield Candidate(Pair(f"{number:03d}", b"", zh=("猫",)), url=url)


class Network:
    """Answers each URL with its own bytes after a time that differs, and counts who is asked at the same time."""

    def __init__(self, wait_s: Callable[[str], float] = lambda url: hash(url) % 5 / 1000) -> None:
        self.wait_s = wait_s
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.begun: list[str] = []
        self.lock = threading.Lock()

    def fetch(self, url: str) -> bytes | Drop:
        host = read_url(url).host or ""
        with self.lock:
            self.begun.append(url)
            self.now[host] += 1
            self.most[host] = max(self.most[host], self.now[host])
            self.most["all"] = max(self.most["all"], self.now.total())
        time.sleep(self.wait_s(url))
        with self.lock:
            self.now[host] -= 1
        return Drop("url-empty", url) if url.endswith("7") else url.encode()


def test_what_comes_out_does_not_depend_on_how_many_work_and_how_long_it_takes() -> None:
    urls = [f"http://{n % 3}.example/{n}" for n in range(100)]
    runs = [list(fetch_in_order(candidates(*urls), Network().fetch, workers, 2)) for workers in (1, 3, 16)]
    assert runs[0] == runs[1] == runs[2]
    assert [one.pair.key for one in runs[0]] == [f"{n:03d}" for n in range(100)]
    assert [one.pair.image.decode() or one.url for one in runs[0]] == urls
    assert [one.fault for one in runs[0] if one.fault] == [Drop("url-empty", url) for url in urls if url.endswith("7")]


def test_no_host_is_asked_by_more_than_its_share() -> None:
    network = Network(lambda url: 0.005)
    urls = [f"http://{'few' if n % 5 else 'many'}.example/{n}" for n in range(60)]
    assert len(list(fetch_in_order(candidates(*urls), network.fetch, 6, 2))) == 60
    assert network.most == {"few.example": 2, "many.example": 2, "all": 4}


def test_a_host_that_is_full_does_not_keep_others_waiting() -> None:
    last = threading.Event()

    def wait_s(url: str) -> float:
        if url.endswith("quick.example/3"):
            last.set()
        if "slow" in url:
            last.wait(20)
        return 0

    network = Network(wait_s)
    urls = [f"http://slow.example/{n}" for n in range(4)] + [f"http://quick.example/{n}" for n in range(4)]
    assert len(list(fetch_in_order(candidates(*urls), network.fetch, 2, 1))) == 8
    assert network.begun.index("http://quick.example/3") < network.begun.index("http://slow.example/1")


def test_no_more_bytes_are_in_hand_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.fetch.fetcher._HELD_BYTES", 100)
    first = threading.Event()
    network = Network(lambda url: first.wait(20) and 0 if url == "http://0.example/" else 0)
    results = fetch_in_order(candidates(*(f"http://{n}.example/" for n in range(99))), network.fetch, 2, 1)
    seen: list[int] = []

    def look() -> None:
        seen.append(len(network.begun))
        first.set()

    threading.Timer(0.5, look).start()
    assert len(list(results)) == 99
    assert seen[0] <= 8  # of about 18 bytes each, and as much again for what comes with them


def test_what_needs_no_download_passes_by_itself() -> None:
    def fetch(url: str) -> bytes | Drop:
        raise AssertionError(url)

    there = Candidate(Pair("a", b"x", en=("cat",)))
    faulty = Candidate(Pair("b", b""), Drop("row-malformed"), "http://x.example/")
    got = list(fetch_in_order(iter([there, faulty, Candidate(Pair("c", b""), url="猫")]), fetch, 4, 1))
    assert got[:2] == [there, faulty]
    assert got[2].fault == Drop("url-scheme", "neither http:// nor https://: 猫")
    assert list(fetch_in_order(iter(()), fetch, 4, 1)) == []


def test_an_exception_of_a_source_or_of_a_bug_in_fetching_is_raised() -> None:
    def broken() -> Iterator[Candidate]:
        yield from candidates("http://a.example/")
        raise ValueError("the source")

    with pytest.raises(ValueError, match="the source"):
        list(fetch_in_order(broken(), Network().fetch, 2, 1))
    with pytest.raises(ZeroDivisionError):
        list(fetch_in_order(candidates("http://a.example/"), lambda url: bytes(1 // 0), 2, 1))
