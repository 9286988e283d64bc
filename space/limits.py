"""
What the Space lends to strangers: which routes are open, how much may be sent, and whose turn it is.

`Door` stands in front of gradio's routes, `Turns` takes the place of its queue. Gradio's queue has
no hooks for this, so `Turns` overrides methods that are not documented; requirements.txt pins the
version that they belong to.
"""

import contextlib
import ipaddress
import itertools
import logging
import os
import re
import time
from collections import Counter
from urllib.parse import parse_qs

import fastapi
import gradio as gr
from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage
from gradio.utils import LRUCache
from starlette.middleware import Middleware
from starlette.responses import JSONResponse


MODEL = "model"  # the queue of what needs the network
LARGEST_BODY = 2**16  # bytes of a request; the page sends a few hundred
PER_SESSION = {MODEL: 2, "page": 20}  # events that wait or run
PER_ADDRESS = {MODEL: 6, "page": 60}  # a classroom may share one
IN_ALL = {MODEL: 200, "page": 500}
AT_ONCE = 100  # open requests of an address; a visitor's page has about two
PATIENCE = 20.0  # seconds that a job waits for somebody to listen to it
PROXIES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"  # the Hub's own, in front of a Space

# All that the page and gradio's clients need. Everything else is closed, including what the next
# gradio brings: run/ and api/, which bypass the queue; uploads, for which no input has a use;
# file=http://…, which fetches from elsewhere; run history, recordings, deep links, proxies,
# component functions, streams, monitoring, reloading and editing of the app.
READ = re.compile(
    r"/|/(assets|static|svelte)/.*|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check)/?"
    r"|/gradio_api/((app_id|info|theme\.css|startup-events|queue/data|queue/status)/?|heartbeat/[\w-]+"
    r"|call/(v2/)?\w+/\w+|file=(?!\w+:).*)"
)
WRITE = r"/gradio_api/(queue/join|cancel|reset|call/(v2/)?({events}))/?"
SESSION = re.compile(r"[\w-]{1,64}")
logger = logging.getLogger(__name__)


def trust_proxies():
    """
    Decides whose word counts for a visitor's address. Uvicorn reads `X-Forwarded-For` from the
    right, past proxies that are trusted. On the Hub these are the Hub's own; elsewhere nobody is,
    because any visitor can write that header. Whoever runs the Space behind another proxy names it
    in FORWARDED_ALLOW_IPS.
    """
    os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES if os.environ.get("SPACE_ID") else "")


def address_of(request: fastapi.Request) -> str:
    """
    Returns the address that a visitor is counted under: of IPv6 the network, since each household
    has 2⁶⁴ addresses.
    """
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def one_line(text: object) -> str:
    """Shortens a text to one line for the log, which a visitor may have written."""
    return ascii(str(text))[:200]


@contextlib.contextmanager
def count(counter: Counter, key: str | None):
    """Counts one more of something for as long as the block lasts."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def kind_of(fn) -> str:
    """Tells what needs the network from what does not."""
    return MODEL if fn.concurrency_id == MODEL else "page"


def check_form(body, fn):
    """
    Refuses an event that the page would not send, before gradio reads it: gradio would fetch the
    address in a file's description, and answer a missing value with a traceback.

    Raises:
        HTTPException: It is no event of the page, or its values are not plain ones, as many as the
            event takes.
    """
    plain = (str, int, float, type(None))  # bool is an int
    if fn is None or fn.fn is None:
        raise fastapi.HTTPException(404, "There is no such event.")
    if body.session_hash is not None and not SESSION.fullmatch(body.session_hash):
        raise fastapi.HTTPException(400, "The session must be named with up to 64 letters and digits.")
    if len(body.data) != len(fn.inputs):
        raise fastapi.HTTPException(
            400, f"The event takes {len(fn.inputs)} values, but {len(body.data)} were sent."
        )
    for value in body.data:
        if not all(isinstance(item, plain) for item in (value if isinstance(value, list) else [value])):
            raise fastapi.HTTPException(
                400, "The values of an event must be numbers, texts or lists of them."
            )
    sent = body.event_data
    if fn.collects_event_data and not (isinstance(sent, dict) and {"index", "value"} <= set(sent)):
        raise fastapi.HTTPException(400, "The event must say what was selected.")
    body.batched = False
    body.oauth_token = None


class Turns(Queue):
    """
    Gradio's queue, in which nobody can keep the others out.

    A session and an address may have a few jobs each; the next job belongs to the address that was
    served longest ago; and a job starts only when somebody listens to it.
    """

    def __init__(self, page: gr.Blocks):
        super().__init__(
            live_updates=True,
            concurrency_count=page.max_threads,
            update_intervals=1,
            max_size=None,  # one number for all would let jobs of the model keep out the page; see IN_ALL
            blocks=page,
            default_concurrency_limit=2,
        )
        self.listeners = Counter()  # of each session
        self._turn = itertools.count(1)
        self._served = LRUCache(1000)
        self._looked = 0.0

    async def push(self, body, request, username):
        """Takes in an event, or says why not."""
        fn = self.blocks.fns.get(body.fn_index)
        try:
            check_form(body, fn)
            self._check_room(kind_of(fn), body.session_hash, address_of(request))
        except fastapi.HTTPException as refusal:
            logger.warning("%s: %s", fn.api_name if fn else "no event", refusal.detail)
            raise
        return await super().push(body, request, username)

    def _check_room(self, kind, session, address):
        events = [event for event in self.event_ids_to_events.values() if kind_of(event.fn) == kind]
        what = "drawings" if kind == MODEL else "events"
        if sum(event.session_hash == session for event in events) >= PER_SESSION[kind]:
            said = f"{PER_SESSION[kind]} of your {what} are waiting or under way. Wait for one of them, or cancel it."
            raise fastapi.HTTPException(429, said)
        if sum(address_of(event.request) == address for event in events) >= PER_ADDRESS[kind]:
            said = f"{PER_ADDRESS[kind]} {what} from your network are waiting or under way. Please wait for one of them."
            raise fastapi.HTTPException(429, said)
        if len(events) >= IN_ALL[kind]:
            raise fastapi.HTTPException(
                503, f"{IN_ALL[kind]} {what} are waiting. Please come back in a few minutes."
            )

    def session_of(self, event_id: str) -> str | None:
        """Returns the session of a job that waits or runs."""
        event = self.event_ids_to_events.get(event_id)
        return event.session_hash if event else None

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """
        Picks the next job: of an address that was served longest ago, and with somebody who
        listens.
        """
        now = time.monotonic()
        if now - self._looked > 1:
            self._looked = now
            self._drop_abandoned(now)
        for name, waiting in self.event_queue_per_concurrency_id.items():
            if (
                waiting.concurrency_limit is not None
                and waiting.current_concurrency >= waiting.concurrency_limit
            ):
                continue
            heard = [event for event in waiting.queue if event.session_hash in self.listeners]
            if heard:
                event = min(heard, key=lambda event: self._served.get(address_of(event.request), 0))
                waiting.queue.remove(event)
                self._served[address_of(event.request)] = next(self._turn)
                return [event], False, name
        return None

    def _drop_abandoned(self, now):
        for waiting in self.event_queue_per_concurrency_id.values():
            for event in list(waiting.queue):
                if event.session_hash not in self.listeners and now - event.enqueue_time > PATIENCE:
                    waiting.queue.remove(event)
                    self._forget(event)

    def _forget(self, event):
        self.event_ids_to_events.pop(event._id, None)
        events = self.pending_event_ids_session.get(event.session_hash, set())
        events.discard(event._id)
        if not events:
            self.pending_event_ids_session.pop(event.session_hash, None)
            self.pending_messages_per_session.pop(event.session_hash, None)

    def send_message(self, event, event_message):
        """Sends a message to whom it concerns; a refusal is one line of the log as well."""
        if isinstance(event_message, ProcessCompletedMessage) and not event_message.success:
            logger.warning("%s: %s", event.fn.api_name, one_line(event_message.output.get("error")))
        super().send_message(event, event_message)

    def compute_analytics_summary(self, records):
        """Computes nothing: gradio does it after each event, for a page that is closed here."""
        return {}


class Door:
    """
    ASGI middleware: closes what nobody needs, bounds what is sent and how much is open at once, and
    turns what a route cannot answer into a sentence.

    Args:
        app: The application behind it.
        page ([`gradio.Blocks`]): The page, whose public events may be called by name.
    """

    def __init__(self, app, page: gr.Blocks):
        self.app = app
        self.queue = page._queue
        self.open = Counter()  # requests of each address
        events = "|".join(fn.api_name for fn in page.fns.values() if fn.api_visibility == "public" and fn.fn)
        self.write = re.compile(WRITE.format(events=events))

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_open = READ if scope["method"] in ("GET", "HEAD") else self.write
        if not is_open.fullmatch(path):
            await JSONResponse({"detail": "There is nothing here."}, 404)(scope, receive, send)
            return
        address = address_of(fastapi.Request(scope))
        if self.open[address] >= AT_ONCE:
            said = f"{AT_ONCE} requests from your network are open. Please close one of them."
            await JSONResponse({"detail": said}, 429)(scope, receive, send)
            return
        with count(self.open, address), count(self.queue.listeners, self._listener(scope, path)):
            await self._answer(scope, receive, send)

    def _listener(self, scope, path):
        """The session to which a request listens, or None."""
        if path.startswith("/gradio_api/queue/data"):
            return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
        if scope["method"] == "GET" and path.startswith("/gradio_api/call/"):
            return self.queue.session_of(path.rsplit("/", 1)[1])
        return None

    async def _answer(self, scope, receive, send):
        if scope["method"] == "POST":
            body = await read_body(receive)
            if body is None:
                said = f"A request may have {LARGEST_BODY:,} bytes."
                await JSONResponse({"detail": said}, 413)(scope, receive, send)
                return
            receive = replay(body, receive)
        started = False

        async def note(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except (
            Exception
        ) as error:  # of one of gradio's routes, to which a visitor sent what it does not expect
            logger.warning(
                "%s %s: %s",
                scope["method"],
                one_line(scope["path"]),
                one_line(f"{type(error).__name__}: {error}"),
            )
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await JSONResponse({"detail": "The request was not understood."}, 400)(scope, receive, send)


async def read_body(receive) -> bytes | None:
    """Reads the body of a request, however it comes; None as soon as it is larger than allowed."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        more = message.get("more_body", False)
    return body


def replay(body: bytes, receive):
    """Gives a body that was read to whom it is for, and after it whatever comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again():
        return messages.pop() if messages else await receive()

    return receive_again


def guard(page: gr.Blocks) -> list[Middleware]:
    """
    Puts a page under these limits.

    Args:
        page ([`gradio.Blocks`]): The page, before it is launched.

    Returns:
        `list[Middleware]`: What its application needs in front of it.
    """
    trust_proxies()
    page.queue(api_open=False)  # no event runs but in its turn
    page._queue = Turns(page)
    return [Middleware(Door, page=page)]
