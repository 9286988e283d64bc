"""The limits of the Space in a page with a single event: whose turn it is, and how visitors are counted."""

import asyncio
import contextlib
import json
import os
import sys
import threading
import time

import fastapi
import gradio as gr
import httpx
import pytest
from conftest import ROOT
from gradio.data_classes import PredictBodyInternal
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


sys.path.insert(0, str(ROOT / "space"))
import limits


BACKSTOP = 300  # seconds after which a test gives up


def request_from(host):
    return fastapi.Request(
        {"type": "http", "client": (host, 1), "headers": [], "method": "POST", "path": "/"}
    )


@pytest.fixture
def page():
    """A page with one event, which needs the network."""
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Button().click(lambda: None, None, None, concurrency_id=limits.MODEL, concurrency_limit=1)
    page.queue()
    return page


@pytest.fixture
def turns(page):
    return limits.Turns(page)


def push(turns, session, host):
    body = PredictBodyInternal(data=[], fn_index=0, session_hash=session)
    return asyncio.run(turns.push(body, request_from(host), None))


def next_sessions(turns):
    """Return the sessions whose jobs start, in order, until no more do."""
    return [events[0].session_hash for events, *_ in iter(turns.get_events, None)]


def test_addresses_take_turns(turns):
    jobs = [
        ("a1", "192.0.2.1"),
        ("a2", "192.0.2.1"),
        ("a3", "192.0.2.1"),
        ("b1", "192.0.2.2"),
        ("c1", "192.0.2.3"),
    ]
    with contextlib.ExitStack() as stack:
        for session, host in jobs:
            push(turns, session, host)
            stack.enter_context(limits.count(turns.listeners, session))
        assert next_sessions(turns) == ["a1", "b1", "c1", "a2", "a3"]
        push(turns, "a4", "192.0.2.1")
        stack.enter_context(limits.count(turns.listeners, "a4"))
        push(turns, "d1", "192.0.2.4")
        stack.enter_context(limits.count(turns.listeners, "d1"))
        assert next_sessions(turns) == ["d1", "a4"]  # a new address comes before one that returns


def test_a_job_starts_only_when_somebody_listens_and_is_dropped_after_a_while(turns):
    push(turns, "silent", "192.0.2.1")
    push(turns, "heard", "192.0.2.1")
    with limits.count(turns.listeners, "heard"):
        assert next_sessions(turns) == ["heard"]
    for event in turns.event_queue_per_concurrency_id[limits.MODEL].queue:
        event.enqueue_time -= limits.PATIENCE + 1
    turns._last_cleanup = 0.0
    with limits.count(turns.listeners, "heard"):
        assert next_sessions(turns) == []
    assert len(turns) == 0
    assert not any(
        "silent" in kept for kept in (turns.pending_messages_per_session, turns.pending_event_ids_session)
    )


def test_jobs_are_limited_by_session_address_and_in_all(turns):
    limit = limits.PER_ADDRESS[limits.MODEL]
    for number in range(limit):
        push(turns, f"s{number}", "192.0.2.1")
    with pytest.raises(fastapi.HTTPException, match=f"Your network already has {limit} drawings waiting"):
        push(turns, "another", "192.0.2.1")
    for _ in range(limits.PER_SESSION[limits.MODEL]):
        push(turns, "mine", "192.0.2.2")
    with pytest.raises(fastapi.HTTPException, match="You already have 5 drawings waiting or running"):
        push(turns, "mine", "192.0.2.3")
    for number in range(limits.IN_ALL[limits.MODEL] - len(turns)):
        push(turns, f"t{number}", f"198.51.100.{number}")
    with pytest.raises(
        fastapi.HTTPException, match="200 drawings are already waiting. Please come back"
    ) as refusal:
        push(turns, "late", "192.0.2.200")
    assert refusal.value.status_code == 503


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::9", "2001:db8:0:1::/64"),
        ("not an address", "not an address"),
    ],
)
def test_visitors_are_counted_by_address(host, address):
    assert limits.find_address(request_from(host)) == address


@pytest.mark.parametrize(
    ("on_hub", "forwarded", "address"),
    [
        (True, "203.0.113.9", "203.0.113.9"),
        (True, "198.51.100.1, 203.0.113.9", "203.0.113.9"),  # the visitor wrote the left one
        (True, "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        (False, "203.0.113.9", "10.16.4.2"),
    ],
)
def test_only_the_hubs_own_proxies_tell_an_address(monkeypatch, on_hub, forwarded, address):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    monkeypatch.setenv("SPACE_ID", "org/dial" if on_hub else "")
    limits.trust_proxies()
    seen = []

    async def app(scope, receive, send):
        seen.append(limits.find_address(fastapi.Request(scope)))

    trusted = ProxyHeadersMiddleware(app, trusted_hosts=os.environ.pop("FORWARDED_ALLOW_IPS"))
    scope = {
        "type": "http",
        "client": ("10.16.4.2", 1),
        "headers": [(b"x-forwarded-for", forwarded.encode())],
    }
    asyncio.run(trusted(scope, None, None))
    assert seen == [address]


def test_an_address_has_few_requests_open_at_once(page, turns):
    page._queue = turns
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    async def ask_too_often():
        closed = asyncio.Event()

        async def wait(scope, receive, send):
            await closed.wait()

        door = limits.Door(wait, page)
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1)}
        many = [asyncio.create_task(door(scope, None, send)) for _ in range(limits.AT_ONCE)]
        await asyncio.sleep(0)
        await door(scope, None, send)
        other = asyncio.create_task(door({**scope, "client": ("192.0.2.2", 1)}, None, send))
        await asyncio.sleep(0)
        assert not other.done()
        closed.set()
        await asyncio.gather(*many, other)
        assert not door.open
        assert not turns.listeners

    asyncio.run(ask_too_often())
    assert statuses == [429, None]


def test_a_running_job_stops_when_its_listener_leaves(monkeypatch):
    """Even a job without a network, which would never end."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    stopped = threading.Event()

    def endless():
        try:
            while True:
                time.sleep(0.01)
                yield "more"
        finally:
            stopped.set()

    with gr.Blocks(analytics_enabled=False) as page:
        gr.Button().click(endless, None, gr.Markdown(), concurrency_id=limits.MODEL, concurrency_limit=1)
    middleware = limits.guard(page)
    page.launch(prevent_thread_lock=True, quiet=True, share=False, app_kwargs={"middleware": middleware})
    try:
        routes = f"{page.local_url}gradio_api/queue"
        job = {"fn_index": 0, "data": [], "session_hash": "x"}
        httpx.post(f"{routes}/join", json=job, timeout=BACKSTOP).raise_for_status()
        with httpx.stream(
            "GET", f"{routes}/data", params={"session_hash": "x"}, timeout=BACKSTOP
        ) as response:
            messages = (json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:"))
            next(message for message in messages if message["msg"] == "process_generating")
        assert stopped.wait(BACKSTOP)
    finally:
        page.close()
