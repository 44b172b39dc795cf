/* The load client of `make bench`: N subscribers of server-sent events, in one thread.
 *
 * Opens N connections, requests a path on each, and checks that each receives every event once and in order. An event
 * is a `data:` line that contains the marker
 *
 *     chatcmpl-S<seq, 7 digits>T<CLOCK_REALTIME at its emission in microseconds, 16 digits>
 *
 * with `seq` counted from 0 in each generation. A line that begins with `data: [DONE]` is an end. Prints
 * `READY <seconds>` when all are connected, and one line of JSON at the end. Exit status 0: complete; 1: events are missing.
 *
 *   -h HOST  address (127.0.0.1)      -p PORT   (8000)        -n N  connections (100)
 *   -u PATH  may be repeated; connection i requests path i modulo their number
 *   -f FILE  paths, one per line, added to those of -u
 *   -H LINE  a header, may be repeated
 *   -e N     events after which a connection is complete (default: [DONE], or the end of its body)
 *   -s SEQ   seq of the first event (0), for resumed streams
 *   -t S     timeout in seconds after READY (60)      -T S  timeout for connecting (60)
 *   -i S     stay connected for S seconds after READY and then report, to measure idle connections
 *   -c N     concurrent connection attempts (64)
 *   -r WHEN  READY when all have: h, received the response headers (default); c, sent the request; n, immediately (for
 *            a replay, where the time is counted from the first connect)
 *   -k       keep complete connections open until all are complete
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"
#include "figures.h"

#define READ_SIZE (256 * 1024)
#define MARKER "chatcmpl-S"
#define MARKER_PREFIX 10                 /* the bytes that identify a marker */
#define MARKER_SIZE (MARKER_PREFIX + 24) /* S, 7 digits, T, 16 digits */
#define MAX_HEAD 65536

/* --- connections -------------------------------------------------------------------------------------------------- */

enum State { CONNECTING, HEAD, BODY, CLOSED };
enum Framing { UNTIL_CLOSE, LENGTH, CHUNKED };
enum Part { SIZE, EXTENSION, DATA, DATA_END }; /* of a chunked body */

typedef struct {
  int fd;
  uint8_t state, framing, part;
  bool arrived, settled, complete; /* past the connect phase; has an outcome; has all events */
  int64_t next;                    /* seq */
  uint64_t left;                   /* bytes of the body, or of the chunk */
  char *rest;                      /* incomplete headers or an incomplete line */
  size_t rest_size, rest_room;
  uint64_t asked_at;
  bool had_event;
} Connection;

static const char *host = "127.0.0.1";
static struct sockaddr_in address = {.sin_family = AF_INET};
static int port = 8000, amount = 100, most_arriving = 64;
static char **paths;
static int path_count;
static char headers[8192];
static int64_t expected = -1, first_seq;
static double timeout = 60, connect_timeout = 60, idle;
static char ready_when = 'h';
static bool keep;

static Connection *connections;
static int poller, arriving, arrived, settled;
static char input[READ_SIZE];

static void watch(Connection *c, int operation, uint32_t what) {
  struct epoll_event event = {.events = what, .data.ptr = c};
  epoll_ctl(poller, operation, c->fd, &event);
}

static void arrive(Connection *c) {
  if (c->arrived) return;
  c->arrived = true;
  arriving--;
  arrived++;
}

/* Count the only outcome of a connection. */
static void settle(Connection *c, int *counter) {
  if (c->settled) return;
  c->settled = true;
  settled++;
  ++*counter;
}

static void hang_up(Connection *c) {
  arrive(c);
  close(c->fd);
  c->state = CLOSED;
  free(c->rest);
  c->rest = NULL;
  c->rest_size = c->rest_room = 0;
}

static void has_all(Connection *c, uint64_t at) {
  if (c->complete) return;
  c->complete = true;
  settle(c, &complete);
  note(&span, at - c->asked_at);
}

static void keep_rest(Connection *c, const char *data, size_t size) {
  if (c->rest_size + size > c->rest_room) {
    c->rest_room = c->rest_size + size + 256;
    c->rest = realloc(c->rest, c->rest_room);
    if (!c->rest) exit(2);
  }
  memcpy(c->rest + c->rest_size, data, size);
  c->rest_size += size;
}

/* --- parsing, from the events up to the socket -------------------------------------------------------------------- */

static uint64_t number(const char *digits, int count) {
  uint64_t value = 0;
  for (int i = 0; i < count; i++) value = value * 10 + (uint64_t)(digits[i] - '0');
  return value;
}

static void take_event(Connection *c, int64_t seq, uint64_t emitted_at, uint64_t at) {
  if (seq < c->next) {
    duplicates++;
  } else {
    gaps += (uint64_t)(seq - c->next);
    c->next = seq + 1;
  }
  events++;
  note(&latency, at > emitted_at ? at - emitted_at : 0);
  if (!c->had_event) {
    c->had_event = true;
    note(&first_event, at - c->asked_at);
    if (!first_at) first_at = at;
  }
  last_at = at;
  if (expected >= 0 && c->next >= first_seq + expected) has_all(c, at);
}

/* The line is without its line feed; a carriage return before it does not matter. */
static inline void take_line(Connection *c, const char *line, const char *end, uint64_t at) {
  if (end - line < 6 || memcmp(line, "data:", 5)) return;
  line += line[5] == ' ' ? 6 : 5;
  const char *marker = memmem(line, (size_t)(end - line), MARKER, MARKER_PREFIX);
  if (marker && end - marker >= MARKER_SIZE) {
    const char *digits = marker + MARKER_PREFIX;
    take_event(c, (int64_t)number(digits, 7), number(digits + 8, 16), at);
  } else if (expected < 0 && end - line >= 6 && !memcmp(line, "[DONE]", 6)) {
    has_all(c, at);
  }
}

static void take_body(Connection *c, const char *data, size_t size, uint64_t at) {
  const char *end = data + size, *line_end;
  if (c->rest_size) {
    line_end = memchr(data, '\n', size);
    keep_rest(c, data, (size_t)((line_end ? line_end : end) - data));
    if (!line_end) return;
    take_line(c, c->rest, c->rest + c->rest_size, at);
    c->rest_size = 0;
    data = line_end + 1;
  }
  for (; data < end && (line_end = memchr(data, '\n', (size_t)(end - data))); data = line_end + 1)
    take_line(c, data, line_end, at);
  if (data < end) keep_rest(c, data, (size_t)(end - data));
}

/* Returns whether the body ends here; data after the last chunk is ignored. */
static bool take_chunks(Connection *c, const char *data, size_t size, uint64_t at) {
  const char *end = data + size;
  while (data < end) {
    if (c->part == DATA) {
      size_t part = (size_t)(end - data) < c->left ? (size_t)(end - data) : c->left;
      take_body(c, data, part, at);
      data += part;
      c->left -= part;
      if (!c->left) c->part = DATA_END;
      continue;
    }
    char byte = *data++, letter = byte | 32;
    if (c->part == DATA_END) {
      if (byte == '\n') c->part = SIZE;
    } else if (byte == '\n') {
      if (!c->left) return true;
      c->part = DATA;
    } else if (c->part == SIZE) {
      if (byte >= '0' && byte <= '9')
        c->left = c->left * 16 + (uint64_t)(byte - '0');
      else if (letter >= 'a' && letter <= 'f')
        c->left = c->left * 16 + (uint64_t)(letter - 'a' + 10);
      else
        c->part = EXTENSION;
    }
  }
  return false;
}

/* Returns the size of the headers, or 0 if they are incomplete or invalid; the state is CLOSED if invalid. */
static size_t take_head(Connection *c) {
  char *end = memmem(c->rest, c->rest_size, "\r\n\r\n", 4);
  if (!end) {
    if (c->rest_size > MAX_HEAD) {
      settle(c, &http_errors);
      hang_up(c);
    }
    return 0;
  }
  *end = '\0';
  if (strncmp(c->rest, "HTTP/1.", 7) || strncmp(c->rest + 9, "200", 3)) {
    if (http_errors < 3) fprintf(stderr, "not 200: %.300s\n", c->rest);
    settle(c, &http_errors);
    hang_up(c);
    return 0;
  }
  const char *encoding = strcasestr(c->rest, "\ntransfer-encoding:");
  const char *length = strcasestr(c->rest, "\ncontent-length:");
  if (encoding && strcasestr(encoding, "chunked"))
    c->framing = CHUNKED;
  else if (length)
    c->framing = LENGTH, c->left = strtoull(length + 16, NULL, 10);
  connected++;
  c->state = BODY;
  arrive(c);
  return (size_t)(end + 4 - c->rest);
}

/* The regular end of a body (`clean`), or the end of the connection. */
static void ended(Connection *c, bool clean, uint64_t at) {
  if (c->state != BODY)
    settle(c, &connection_errors);
  else if (clean && expected < 0 && idle == 0)
    has_all(c, at);
  else
    settle(c, &ended_early);
  hang_up(c);
}

static void take(Connection *c, const char *data, size_t size, uint64_t at) {
  bool end = false;
  if (c->framing == CHUNKED)
    end = take_chunks(c, data, size, at);
  else if (c->framing == UNTIL_CLOSE)
    take_body(c, data, size, at);
  else {
    if (size > c->left) size = c->left;
    take_body(c, data, size, at);
    c->left -= size;
    end = !c->left;
  }
  if (c->complete && !keep)
    hang_up(c);
  else if (end)
    ended(c, true, at);
}

static void readable(Connection *c) {
  ssize_t size;
  do {
    size = recv(c->fd, input, READ_SIZE, 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    uint64_t at = now();
    if (size <= 0) {
      ended(c, size == 0 && c->framing == UNTIL_CLOSE && c->had_event, at);
      return;
    }
    bytes += (uint64_t)size;
    reads++;
    if (c->state == BODY) {
      take(c, input, (size_t)size, at);
    } else {
      keep_rest(c, input, (size_t)size);
      size_t head = take_head(c);
      if (head) {
        char *all = c->rest; /* `take` may store parts of the body in `rest` */
        size_t all_size = c->rest_size;
        c->rest = NULL;
        c->rest_size = c->rest_room = 0;
        if (all_size > head || (c->framing == LENGTH && !c->left)) take(c, all + head, all_size - head, at);
        free(all);
      }
    }
  } while (c->state != CLOSED && size == READ_SIZE);
}

/* --- connecting --------------------------------------------------------------------------------------------------- */

static void open_connection(Connection *c) {
  arriving++;
  c->next = first_seq;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) {
    perror("socket");
    exit(2);
  }
  int on = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
    settle(c, &connection_errors);
    hang_up(c);
    return;
  }
  watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(Connection *c) {
  static char request[16384];
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  const char *path = paths[(c - connections) % path_count];
  int length = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s\r\n", path, host, port,
                        headers);
  c->asked_at = now();
  if (error || length >= (int)sizeof request || send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
    settle(c, &connection_errors);
    hang_up(c);
    return;
  }
  c->state = HEAD;
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  if (ready_when == 'c') arrive(c);
}

/* --- the run ------------------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t stopped;

static void stop(int signal) {
  (void)signal;
  stopped = 1;
}

/* Returns the time at which all were ready, 0 if never. */
static uint64_t run(uint64_t started) {
  static struct epoll_event found[1024];
  uint64_t ready = 0;
  int next = 0;
  while (!stopped) {
    while (next < amount && arriving < most_arriving) open_connection(&connections[next++]);
    uint64_t at = now();
    if (!ready && (arrived == amount || ready_when == 'n')) {
      ready = at;
      printf("READY %.6f\n", (double)(ready - started) / 1e6);
      fflush(stdout);
    }
    double waited = (double)(at - (ready ? ready : started)) / 1e6;
    if (waited > (!ready ? connect_timeout : idle > 0 ? idle : timeout)) break;
    if (ready && idle == 0 && settled == amount) break;
    int count = epoll_wait(poller, found, 1024, 50);
    for (int i = 0; i < count; i++) {
      Connection *c = found[i].data.ptr;
      if (c->state == CONNECTING)
        ask(c);
      else if (c->state != CLOSED)
        readable(c);
    }
  }
  return ready;
}

static void add_path(const char *path) {
  paths = realloc(paths, (size_t)(path_count + 1) * sizeof *paths);
  paths[path_count++] = strdup(path);
}

static void add_paths(const char *file) {
  static char line[8192];
  FILE *stream = fopen(file, "r");
  if (!stream) {
    perror(file);
    exit(2);
  }
  while (fgets(line, sizeof line, stream)) {
    line[strcspn(line, "\r\n")] = '\0';
    if (*line) add_path(line);
  }
  fclose(stream);
}

static void add_header(const char *line) {
  size_t size = strlen(headers);
  if (snprintf(headers + size, sizeof headers - size, "%s\r\n", line) >= (int)(sizeof headers - size)) {
    fprintf(stderr, "the headers are too long\n");
    exit(2);
  }
}

int main(int count, char **arguments) {
  int option;
  while ((option = getopt(count, arguments, "h:p:n:u:f:H:e:s:t:T:i:c:r:k")) != -1) switch (option) {
      case 'h': host = optarg; break;
      case 'p': port = atoi(optarg); break;
      case 'n': amount = atoi(optarg); break;
      case 'u': add_path(optarg); break;
      case 'f': add_paths(optarg); break;
      case 'H': add_header(optarg); break;
      case 'e': expected = atoll(optarg); break;
      case 's': first_seq = atoll(optarg); break;
      case 't': timeout = atof(optarg); break;
      case 'T': connect_timeout = atof(optarg); break;
      case 'i': idle = atof(optarg); break;
      case 'c': most_arriving = atoi(optarg); break;
      case 'r': ready_when = *optarg; break;
      case 'k': keep = true; break;
      default: fprintf(stderr, "The options are documented at the top of subscribers.c.\n"); return 2;
    }
  if (!path_count) add_path("/");
  address.sin_port = htons((uint16_t)port);
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
    fprintf(stderr, "not an IPv4 address: %s\n", host);
    return 2;
  }
  raise_file_limit();
  signal(SIGINT, stop);
  signal(SIGTERM, stop);
  signal(SIGPIPE, SIG_IGN);
  connections = calloc((size_t)amount, sizeof *connections);
  poller = epoll_create1(EPOLL_CLOEXEC);
  uint64_t started = now(), ready = run(started);
  report(amount, idle > 0 && ready ? 0 : amount - settled, started, ready);
  bool whole = idle > 0 ? connected == amount && !ended_early : complete == amount;
  return !(whole && !gaps && !duplicates);
}
