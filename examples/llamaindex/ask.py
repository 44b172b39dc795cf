"""LlamaIndex through Tokencast: `OpenAILike` with the gateway as its `api_base`."""

import os
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base=os.environ.get("TOKENCAST_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TOKENCAST_API_KEY", "unused"),
    model=os.environ.get("MODEL", "gabforge-coder"),
    is_chat_model=True,
    context_window=128_000,
    timeout=900,
    # Tokencast's own options: first in the queue, and up to ten minutes of waiting.
    additional_kwargs={"extra_body": {"tokencast": {"priority": 1, "queue_timeout": 600}}},
)

question = sys.argv[1] if len(sys.argv) > 1 else "Explain the GIL in CPython."
for chunk in model.stream_chat([ChatMessage(role="user", content=question)]):
    print(chunk.delta, end="", flush=True)
print()
