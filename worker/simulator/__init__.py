"""A simulated upstream: an OpenAI-compatible server whose every answer, and every fault, can be asked for.

    python -m worker.simulator --port 8001

    POST   /v1/chat/completions   streaming and not
    GET    /v1/models
    GET    /healthz
    GET    /sim/calls[?label=L]   every call so far: what was asked, how it ended
    DELETE /sim/calls             forget them, and how often faults with `times` have struck

How to answer is chosen by the model's name, `sim`, `gabforge-coder` (both plain) or `sim-<style or fault>`,
and by a directive anywhere in the last user message, which wins:

    Tell me a story. [[sim length=200 speed=0 fault=rst at=20 times=1]]

KEYS            MEANING (and default)
seed            which text; (derived from the messages, directives left out). Choice k says seed + k
length          content chunks of each choice (60; 0 with tools or refusal). max_tokens ends it earlier
speed           chunks per second, of all choices together (40); 0: as fast as possible, many to a write
delay           seconds before the first chunk (0)
size            bytes of each chunk's JSON, made up with an `obfuscation` field where it is shorter (0: as it is)
reasoning       reasoning chunks before the content (0)
reasoning_field reasoning_content | reasoning
tools           tool calls, streamed: index, id and name first, then the arguments in pieces (0)
refusal         refusal chunks (0)
finish          stop | length | tool_calls | content_filter
shape           openai | gabforge (choices with delta and index, nothing more: no role chunk, no
                finish_reason, no usage) | azure (prompt_filter_results first, id "") | extra (unknown fields)
usage           auto: a usage chunk if stream_options.include_usage asks for one | never: ignore that
                | reject: the fault 400-usage
stamp           1: each chunk carries sim_ns, time.time_ns() as it is written
newlines        lf | crlf
unicode         1: emoji, CJK, U+2028, quotes, backslashes, <script>, control characters
split_surrogate 1: as unicode, and the two halves of an emoji's JSON escape come in different chunks
keepalive       seconds of nothing to say between `: keep-alive` comments (0: none)
split           most bytes per write, frames being cut anywhere; 1: a write for every byte (0: whole frames)
label           shown in /sim/calls
fault           one of the below
at              content chunks before the fault strikes (5); where there is no content, tool or refusal chunks
times           calls of this label (else this seed) that the fault strikes before all goes well (every call)
retry_after     seconds, for the Retry-After header of an error status
bytes           length of a huge line, or of a huge error's body (2097152)
to              where a redirect leads (this address, next port)
reply           a reply of the table in `replies`, byte for byte, instead of all this: what real upstreams send

FAULTS          MEANING
truncate        clean end after `at`: no finish_reason, no [DONE]
no-done         finish_reason, then a clean end without [DONE]
done-only       [DONE] without a finish_reason
no-blank-line   truncate, the last frame lacking the blank line that would dispatch it
empty           nothing but [DONE]
error-frame     data: {"error": ...} after `at`, then [DONE]
rst             RST in the middle of a frame
cut             FIN in the middle of a frame, the chunked encoding unfinished
stall           silence after `at`, for ever
comments        only keep-alive comments after `at`, for ever
bad-json        the frame after `at` lacks its last brace; the stream goes on
bad-utf8        ... has invalid UTF-8 in a field nobody decodes
bad-utf8-content ... has invalid UTF-8 in its content
nan             ... holds a NaN
huge-line       ... is a line of more than `bytes` bytes
raw-newline     ... is JSON over several lines, sent as several data: lines (valid)
retry-field     a block of `retry:` alone, then a block of `id:` alone, then an id for every frame (valid)
event-field     every frame has an event: line (valid)
null-content    now and then a chunk whose content is null (valid)
tool-no-index   tool calls without index, finish_reason stop, as Gemini sends them (valid)
split           as split=7 (valid)
trickle         a byte at a time, each frame over the time it has (valid)
gzip            compressed, if the client accepts it; the compressor holds text back (valid)
slow-headers    `delay` seconds before the status line (2) (valid)
mute            takes the request, never answers
silent          headers, then nothing
json-200        200 with a JSON error for a body
html            200 with a captive portal's page
huge-error      500 with a body of more than `bytes` bytes
redirect        307 to `to`
400-usage       400 that names stream_options, if those were sent
400 401 403 404 413 422 429 500 502 503   that status, with an error in OpenAI's shape

STYLES          (models sim-<style>) fast, slow, long, reasoning, tools, refusal, length, filter, gabforge, azure,
                extra, no-usage, stamp, crlf, unicode, surrogate, keepalive

What the model says is `text.pieces(seed, length)`: a test need not ask the server what to expect. With
`stream: false`, the faults that make sense there apply: error statuses, huge-error, html, json-200, redirect, mute,
silent, slow-headers, gzip, rst, cut, truncate (as cut), stall, bad-json, bad-utf8-content.
"""
