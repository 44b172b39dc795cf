"""A simulated upstream: an OpenAI-compatible server whose replies and faults are chosen by the request.

    python -m worker.simulator --port 8001

    POST   /v1/chat/completions   with and without streaming
    GET    /v1/models
    GET    /healthz
    GET    /sim/calls[?label=L]   the calls so far: their parameters and outcomes
    DELETE /sim/calls             reset the calls, the counts, and those of faults with `times`
    GET    /sim/counts            {"calls", "refused", "unavailable", "in_flight", "max_in_flight"}
    GET    /sim/quota             the quota
    PUT    /sim/quota             replace the quota, for instance by {"concurrency": 4, "retry_after": 1}
    PATCH  /sim/quota             change the named fields of the quota only

The model's name selects the reply: `sim` and `gabforge-coder` (both plain) or `sim-<style or fault>`. A directive
anywhere in the last user message has precedence:

    Tell me a story. [[sim length=200 speed=0 fault=rst at=20 times=1]]

KEYS            MEANING (and default)
seed            selects the text (derived from the messages without directives). Choice k has the text of seed + k
length          content chunks of each choice (60; 0 with tools or refusal). max_tokens can end it earlier
speed           chunks per second, all choices together (40); 0: as fast as possible, many chunks per write
delay           seconds before the first chunk (0)
size            bytes of each chunk's JSON, padded with an `obfuscation` field if it is shorter (0: no padding)
reasoning       reasoning chunks before the content (0)
reasoning_field reasoning_content | reasoning
tools           tool calls, streamed: index, id and name first, then the arguments in pieces (0)
refusal         refusal chunks (0)
finish          stop | length | tool_calls | content_filter
shape           openai | gabforge (choices with delta and index only: no role chunk, no finish_reason,
                no usage) | azure (prompt_filter_results first, id "") | extra (unknown fields)
usage           auto: a usage chunk if stream_options.include_usage is true | never: no usage chunk
                | reject: the fault 400-usage
stamp           1: each chunk has sim_ns, the time.time_ns() at which it is written
newlines        lf | crlf
unicode         1: emoji, CJK, U+2028, quotes, backslashes, <script>, control characters
split_surrogate 1: as unicode, and the two halves of an emoji's JSON escape are in different chunks
keepalive       seconds without a chunk after which a `: keep-alive` comment is sent (0: no comments)
split           maximum bytes per write, frames are cut anywhere; 1: one write per byte (0: whole frames)
label           name of the call in /sim/calls
fault           one of the faults below
at              content chunks before the fault (5); without content: tool or refusal chunks
times           number of calls with this label (or this seed) that have the fault (all calls)
retry_after     seconds in the Retry-After header of an error status
bytes           length of a huge line, or of a huge error's body (2097152)
to              target of a redirect (this address, next port)
continues       yes: a reply to messages that end with one of the assistant goes on after its text, if that is the start
                of the reply | restart: it begins again | reject: 400
overlap         characters of that text that the reply repeats before it goes on (0)
reply           a reply from the table in `replies`, byte for byte, as real upstreams send it; other keys are ignored

FAULTS          MEANING
truncate        clean end after `at` chunks: no finish_reason, no [DONE]
no-done         finish_reason, then a clean end without [DONE]
done-only       [DONE] without a finish_reason
no-blank-line   truncate, and the last frame lacks the blank line that would dispatch it
empty           only [DONE]
error-frame     data: {"error": ...} after `at`, then [DONE]
rst             RST in the middle of a frame
cut             FIN in the middle of a frame, the chunked encoding unfinished
stall           nothing after `at`, the connection stays open
comments        only keep-alive comments after `at`, without end
bad-json        the frame after `at` lacks its last brace; the stream goes on
bad-utf8        ... has invalid UTF-8 in a field that clients do not decode
bad-utf8-content ... has invalid UTF-8 in its content
nan             ... contains a NaN
huge-line       ... is a line of more than `bytes` bytes
raw-newline     ... is JSON over several lines, sent as several data: lines (valid)
retry-field     an event with only `retry:`, one with only `id:`, then an id in every frame (valid)
event-field     every frame has an event: line (valid)
null-content    some content chunks are followed by one whose content is null (valid)
tool-no-index   tool calls without index, finish_reason stop, as Gemini sends them (valid)
split           as split=7 (valid)
trickle         one byte at a time, each frame spread over its time slot (valid)
gzip            compressed, if the client accepts it; the compressor delays text (valid)
slow-headers    `delay` seconds before the status line (2) (valid)
mute            accepts the request, never responds
silent          headers, then nothing
json-200        200 with a JSON error as the body
html            200 with the page of a captive portal
huge-error      500 with a body of more than `bytes` bytes
redirect        307 to `to`
400-usage       400 that names stream_options, if the request has them
400 401 403 404 413 422 429 500 502 503   that status, with an error in OpenAI's form

STYLES          (models sim-<style>) fast, slow, long, reasoning, tools, refusal, length, filter, gabforge, azure,
                extra, no-usage, stamp, crlf, unicode, surrogate, keepalive

QUOTA               MEANING (and default); a JSON object: the body of PUT and PATCH, and the option --quota
concurrency         calls in flight at once; the rest gets 429 (null: no limit, as for the rates)
requests_per_minute calls in each minute; x-ratelimit-limit-, -remaining- and -reset-requests are in every response
tokens_per_minute   tokens of prompts and replies in each minute; the same headers, -tokens
minute              length of a minute in seconds (60)
rate_headers        false: no x-ratelimit- headers, as many servers (true)
retry_after         seconds in the Retry-After header of a 429 (null: no header)
retry_after_ms      milliseconds in the retry-after-ms header of a 429 (null: no header)
outage              true: every call gets 503 | seconds: for that time from now (false)
outage_status       status in an outage (503)
outage_retry_after  seconds in its Retry-After header (null: no header)
header_delay        seconds before the status line of each admitted call (0)

A request that fails on every upstream and at any time has the directive `fault=500`, without `times`.

The text of a reply is `text.pieces(seed, length)`, so a test can compute it. With `stream: false` these faults apply:
error statuses, huge-error, html, json-200, redirect, mute, silent, slow-headers, gzip, rst, cut, truncate (as cut),
stall, bad-json, bad-utf8-content.
"""
