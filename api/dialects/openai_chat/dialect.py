"""The chat dialect as `api/app.py` mounts it."""

from __future__ import annotations

from api.dialects.base import DialectApi, Mounted
from api.dialects.openai_chat import openapi
from api.dialects.openai_chat.frames import CHAT
from api.dialects.openai_chat.routes import ChatCompletionRoutes
from api.streaming.follow import Follow
from broker.broker import Broker


def mount(broker: Broker, follow: Follow) -> Mounted:
    return Mounted(ChatCompletionRoutes(broker, follow).routes())


OPENAI_CHAT_API = DialectApi(CHAT.name, mount, openapi.paths, openapi.SCHEMAS, strict_prefix="/v1/chat/")
