"""Doctor and webhooks: one signed test event to each, never more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import uuid4

from bridge.config import WebhookSettings
from bridge.doctor_report import Finding, failed, ok
from bridge.egress.webhook import Webhook, message_id
from bridge.errors import DeliveryError

TYPE = "callscribe.test"

# By a word of the sentence that egress.webhook says; the first that fits
_NO_ANSWER = (
    ("allow_private", "if not, correct the host in the webhook's url, or its name service"),
    ("certificate", "renew it, or have this machine trust who signed it"),
    ("TLS", "does the receiver speak TLS on that port? If not, its url begins with http://"),
    ("resolved", "correct the host in the webhook's url, or this machine's name service"),
    ("within", "is a firewall in between? The receiver must answer before it works on the event"),
    ("reached", "start the receiver, or correct host and port in the webhook's url"),
)
_STATUS = {
    401: ("refuses the signature", "compare the webhook's secret with the receiver's"),
    403: ("refuses the signature", "compare the webhook's secret with the receiver's"),
    404: ("has nothing at that path", "correct the path in the webhook's url"),
    405: ("takes no POST at that path", "correct the path in the webhook's url"),
    410: ("wants no more events", "remove this webhook, or have the receiver take events again"),
    413: ("finds even a small event too large", "raise the receiver's limit; 64 kB will do"),
    429: ("says that it gets too many requests", "raise the receiver's limit for this bridge"),
}


async def check(settings: WebhookSettings) -> list[Finding]:
    """POST one event of type ``callscribe.test``, signed as every event is."""
    hook = Webhook(settings)
    await hook.start()
    try:
        status, _ = await hook.post(message_id(f"doctor-{uuid4()}", hook.name, 0), _event())
    except DeliveryError as e:
        advice = (text for word, text in _NO_ANSWER if word in str(e))
        found = failed(hook.name, str(e), next(advice, "see the receiver's log"))
        return [found]
    finally:
        await hook.close()
    return [_judge(hook.name, status)]


def _event() -> bytes:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": TYPE, "timestamp": moment, "data": {}}).encode()


def _judge(name: str, status: int) -> Finding:
    if 200 <= status < 300:
        return ok(name, f"answered {status} to a signed event of type {TYPE}")
    if 300 <= status < 400:
        found, advice = (
            "redirects, which is not followed",
            "put the address it redirects to into the webhook's url",
        )
    elif status in _STATUS:
        found, advice = _STATUS[status]
    elif status < 500:
        found = f"does not take an event of type {TYPE}"
        advice = "have it answer 2xx to types it does not know, and see its log"
    else:
        found, advice = "has failed", "see the receiver's log"
    return failed(name, f"answered {status}: it {found}", advice)
