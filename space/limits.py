"""
Limits for strangers: which routes are open, how much may be sent, and whose turn it is.

`Door` stands in front of Gradio's routes, and `Turns` replaces its queue. Gradio's queue has no hooks
for this, so `Turns` overrides undocumented methods; requirements.txt pins the version of Gradio that
has them.
"""

import contextlib
import ipaddress
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import fastapi
import gradio as gr
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage
from gradio.utils import LRUCache
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


MODEL = "model"  # the queue of events that need the network
LARGEST_BODY = 2**16  # bytes per request; the page sends a few hundred
# Events that wait or run. A session may have a drawing in each of the page's five tabs.
PER_SESSION = {MODEL: 5, "page": 20}
PER_ADDRESS = {MODEL: 6, "page": 60}  # a whole classroom may share an address
IN_ALL = {MODEL: 200, "page": 500}
AT_ONCE = 100  # open requests per address; a visitor's page has about two
PATIENCE = 20.0  # seconds that a job waits for somebody to listen for its results
LONGEST_LOG = 200  # characters of a visitor's text in the log
PROXIES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"  # the Hub's own, in front of a Space

# All routes that the page and Gradio's clients need. Every other route is closed, including those that
# later versions add: run/ and api/, which bypass the queue; uploads, which no input uses;
# file=http://…, which fetches from other servers; run history, recordings, deep links, proxies,
# component functions, streams, monitoring, and reloading and editing the app.
READ_ROUTES = re.compile(
    r"/|/(assets|static|svelte)/.*|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check)/?"
    r"|/gradio_api/((app_id|info|theme\.css|startup-events|queue/data|queue/status)/?|heartbeat/[\w-]+"
    r"|call/(v2/)?\w+/\w+|file=(?!\w+:).*)"
)
WRITE_ROUTES = r"/gradio_api/(queue/join|cancel|reset|call/(v2/)?({events}))/?"
SESSION = re.compile(r"[\w-]{1,64}")
PLAIN = (str, int, float, type(None))  # the types of plain values; a bool is an int
logger = logging.getLogger(__name__)


def trust_proxies() -> None:
    """
    Choose which proxies may report a visitor's address.

    Uvicorn reads `X-Forwarded-For` from the right, past all trusted proxies. On the Hub, the Hub's own
    proxies are trusted. Elsewhere none are, because any visitor can write that header; to run the
    Space behind another proxy, name it in the environment variable FORWARDED_ALLOW_IPS.
    """
    os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES if os.environ.get("SPACE_ID") else "")


def find_address(request: fastapi.Request) -> str:
    """
    Find the address that a visitor is counted under.

    Args:
        request (`fastapi.Request`): A request of the visitor.

    Returns:
        `str`: An IPv4 address, or an IPv6 network, because each household has 2⁶⁴ IPv6 addresses.
    """
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def shorten(text: object) -> str:
    """Shorten a text that a visitor may have written to one line of ASCII for the log."""
    return ascii(str(text))[:LONGEST_LOG]


@contextlib.contextmanager
def count(counter: Counter, key: str | None) -> Iterator[None]:
    """Count one more of something while the block runs."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def find_kind(event: BlockFunction) -> str:
    """Tell events that need the network from other events of the page."""
    return MODEL if event.concurrency_id == MODEL else "page"


def is_plain(value: Any) -> bool:
    """Tell whether a value is a number, a text, or a list of them."""
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, PLAIN) for item in items)


def check_event(body: PredictBodyInternal, event: BlockFunction | None) -> None:
    """
    Refuse what the page would never send, before Gradio reads it.

    Gradio would fetch the address in the description of a file, and would answer a missing value with
    a traceback.

    Args:
        body (`PredictBodyInternal`): What was sent.
        event (`BlockFunction`, *optional*): The event of the page that it is for.

    Raises:
        HTTPException: There is no such event, or it takes other values.
    """
    if event is None or event.fn is None:
        raise fastapi.HTTPException(404, "There is no such event.")
    if body.session_hash is not None and not SESSION.fullmatch(body.session_hash):
        raise fastapi.HTTPException(
            400, "The session's name must be 1 to 64 letters, digits, hyphens or underscores."
        )
    if len(body.data) != len(event.inputs):
        raise fastapi.HTTPException(
            400, f"The event takes {len(event.inputs)} values, but {len(body.data)} were sent."
        )
    if not all(is_plain(value) for value in body.data):
        raise fastapi.HTTPException(400, "The values of an event must be numbers, texts, or lists of them.")
    selection = body.event_data
    if event.collects_event_data and not (
        isinstance(selection, dict) and {"index", "value"} <= set(selection)
    ):
        raise fastapi.HTTPException(400, "The event must say what was selected.")
    body.batched = False
    body.oauth_token = None


class Turns(Queue):
    """
    Replace Gradio's queue by one in which no visitor can keep the others out.

    Each session and each address may have a few jobs; the next job is taken from the address that was
    served longest ago; and a job starts only while somebody listens for its results.

    Args:
        page (`gradio.Blocks`): The page.
    """

    def __init__(self, page: gr.Blocks):
        super().__init__(
            live_updates=True,
            concurrency_count=page.max_threads,
            update_intervals=1,
            max_size=None,  # with a single limit, drawings could keep out the page's events; see IN_ALL
            blocks=page,
            default_concurrency_limit=2,
        )
        self.sleep_when_free = max(self.sleep_when_free, 0.005)  # a millisecond would slow the network
        self.listeners: Counter[str | None] = Counter()  # open requests for results, per session
        self._turns = itertools.count(1)
        self._last_turns = LRUCache(1000)  # per address
        self._last_cleanup = 0.0

    async def push(self, body: PredictBodyInternal, request: fastapi.Request, username: str | None) -> Any:
        """Take in an event, or say why not."""
        event = self.blocks.fns.get(body.fn_index)
        try:
            check_event(body, event)
            self._check_room(find_kind(event), body.session_hash, find_address(request))
        except fastapi.HTTPException as refusal:
            logger.warning("%s: %s", event.api_name if event else "no event", refusal.detail)
            raise
        return await super().push(body, request, username)

    def _check_room(self, kind: str, session: str | None, address: str) -> None:
        jobs = [job for job in self.event_ids_to_events.values() if find_kind(job.fn) == kind]
        noun = "drawings" if kind == MODEL else "events"
        if sum(job.session_hash == session for job in jobs) >= PER_SESSION[kind]:
            have = f"You already have {PER_SESSION[kind]} {noun} waiting or running."
            raise fastapi.HTTPException(429, f"{have} Wait for one to finish, or cancel it.")
        if sum(find_address(job.request) == address for job in jobs) >= PER_ADDRESS[kind]:
            have = f"Your network already has {PER_ADDRESS[kind]} {noun} waiting or running."
            raise fastapi.HTTPException(429, f"{have} Please wait for one to finish.")
        if len(jobs) >= IN_ALL[kind]:
            raise fastapi.HTTPException(
                503, f"{IN_ALL[kind]} {noun} are already waiting. Please come back in a few minutes."
            )

    def find_session(self, job_id: str) -> str | None:
        """Find the session of a job that waits or runs."""
        job = self.event_ids_to_events.get(job_id)
        return job.session_hash if job else None

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """Pick the next job: one that somebody listens for, from the address served longest ago."""
        now = time.monotonic()
        if now - self._last_cleanup > 1:
            self._last_cleanup = now
            self._drop_abandoned_jobs(now)
        for name, waiting in self.event_queue_per_concurrency_id.items():
            limit = waiting.concurrency_limit
            if limit is not None and waiting.current_concurrency >= limit:
                continue
            heard = [job for job in waiting.queue if job.session_hash in self.listeners]
            if heard:
                job = min(heard, key=lambda job: self._last_turns.get(find_address(job.request), 0))
                waiting.queue.remove(job)
                self._last_turns[find_address(job.request)] = next(self._turns)
                return [job], False, name
        return None

    def _drop_abandoned_jobs(self, now: float) -> None:
        for waiting in self.event_queue_per_concurrency_id.values():
            for job in list(waiting.queue):
                if job.session_hash not in self.listeners and now - job.enqueue_time > PATIENCE:
                    waiting.queue.remove(job)
                    self._forget(job)

    def _forget(self, job: Event) -> None:
        self.event_ids_to_events.pop(job._id, None)
        pending = self.pending_event_ids_session.get(job.session_hash, set())
        pending.discard(job._id)
        if not pending:
            self.pending_event_ids_session.pop(job.session_hash, None)
            self.pending_messages_per_session.pop(job.session_hash, None)

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        """Send a message to the visitor; log a refusal as one line."""
        if isinstance(event_message, ProcessCompletedMessage) and not event_message.success:
            logger.warning("%s: %s", event.fn.api_name, shorten(event_message.output.get("error")))
        super().send_message(event, event_message)

    def compute_analytics_summary(self, records: Any) -> dict:
        """Compute nothing: Gradio would do so after each event, for a page that is closed here."""
        return {}


class Door:
    """
    ASGI middleware that closes all routes but those needed, limits how much is sent and how many
    requests are open at once, and answers with a sentence where a route fails.

    Args:
        app (`ASGIApp`): The application behind it.
        page (`gradio.Blocks`): The page, whose public events may be called by name.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks):
        self.app = app
        self.queue = page._queue
        self.open: Counter[str | None] = Counter()  # requests per address
        events = "|".join(
            event.api_name for event in page.fns.values() if event.api_visibility == "public" and event.fn
        )
        self.write_routes = re.compile(WRITE_ROUTES.format(events=events))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        routes = READ_ROUTES if scope["method"] in ("GET", "HEAD") else self.write_routes
        if not routes.fullmatch(path):
            await refuse(404, "Not found.", scope, receive, send)
            return
        address = find_address(fastapi.Request(scope))
        if self.open[address] >= AT_ONCE:
            message = f"Your network already has {AT_ONCE} requests open. Please close one of them."
            await refuse(429, message, scope, receive, send)
            return
        with count(self.open, address), count(self.queue.listeners, self._find_listener(scope, path)):
            await self._answer(scope, receive, send)

    def _find_listener(self, scope: Scope, path: str) -> str | None:
        """Find the session whose results a request listens for."""
        if path.startswith("/gradio_api/queue/data"):
            return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
        if scope["method"] == "GET" and path.startswith("/gradio_api/call/"):
            return self.queue.find_session(path.rsplit("/", 1)[1])
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            body = await read_body(receive)
            if body is None:
                message = f"A request may hold at most {LARGEST_BODY:,} bytes."
                await refuse(413, message, scope, receive, send)
                return
            receive = replay(body, receive)
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception as error:  # a visitor sent what one of Gradio's routes does not expect
            what = shorten(f"{type(error).__name__}: {error}")
            logger.warning("%s %s: %s", scope["method"], shorten(scope["path"]), what)
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await refuse(400, "The request was not understood.", scope, receive, send)


async def refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a status and a sentence."""
    await JSONResponse({"detail": message}, status)(scope, receive, send)


async def read_body(receive: Receive) -> bytes | None:
    """Read the body of a request; return None as soon as it is larger than allowed."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        more = message.get("more_body", False)
    return body


def replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that has been read to the next reader, followed by whatever comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def guard(page: gr.Blocks) -> list[Middleware]:
    """
    Put a page under these limits.

    Args:
        page (`gradio.Blocks`): The page, before it is launched.

    Returns:
        `list[Middleware]`: The middleware for its application.
    """
    trust_proxies()
    page.queue(api_open=False)  # every event waits its turn
    page._queue = Turns(page)
    return [Middleware(Door, page=page)]
