"""LangChain through Tokencast: only `base_url` and the key differ from OpenAI."""

import os
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("TOKENCAST_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TOKENCAST_API_KEY", "unused"),
    model=os.environ.get("MODEL", "gabforge-coder"),
    include_response_headers=True,
    # Tokencast's own options: first in the queue, and up to ten minutes of waiting.
    extra_body={"tokencast": {"priority": 1, "queue_timeout": 600}, "metadata": {"app": "langchain"}},
    timeout=900,
)

for chunk in model.stream(sys.argv[1] if len(sys.argv) > 1 else "Explain the GIL in CPython."):
    if headers := chunk.response_metadata.get("headers"):
        print(headers["x-generation-id"])  # others can follow it; `tokencast follow ID`
    print(chunk.content, end="", flush=True)
print()
