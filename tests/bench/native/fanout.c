/* The physical limit with which `make bench` compares the gateway: events to N connections without a backend.
 *
 * One thread and epoll, no Redis, and only the HTTP that a client needs. Events are framed once into one buffer, with
 * the bytes that the gateway sends in its native dialect (events emitted together are one chunk of the chunked
 * encoding). A connection is an offset into the buffer. Prints `LISTENING <port>`, and `READY` when all are connected.
 * Starts with a line (or the end) of standard input. Prints one line of JSON when all events have been sent.
 *
 *   -p PORT  (0: any)    -n N  connections (100)    -e N  events (2000)
 *   -r RATE  events per second (200); 0: a flood, as fast as possible
 *   -k N     events emitted together in a flood or a replay (1)
 *   -R       replay: all events exist before the first connection and are sent at once
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
#include <sys/timerfd.h>
#include <unistd.h>

#include "common.h"

#define FRAME_SIZE 320 /* at least the size of a frame and its share of the chunked encoding */
#define CHUNK_SIZE 16

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                           "Cache-Control: no-store, no-transform\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char FRAME[] = "id: 1850812345678901-%ld\nevent: chunk\ndata: {\"id\":\"chatcmpl-S%07ldT%016lu\","
                            "\"object\":\"chat.completion.chunk\",\"created\":1741569952,"
                            "\"model\":\"gpt-4o-2024-08-06\","
                            "\"system_fingerprint\":\"fp_44709d6fcb\",\"choices\":[{\"index\":0,"
                            "\"delta\":{\"content\":\" stream\"},\"finish_reason\":null}]}\n\n";
static const char ENDING[] = "id: 1850812345678901-%ld\nevent: completed\n"
                             "data: {\"finish_reason\":\"stop\",\"usage\":null}\n\n";

typedef struct {
  int fd;
  size_t offset;
  bool streaming, full; /* the request was received; the socket buffer is full */
  char last[4];         /* bytes of the request: it ends with an empty line */
} Connection;

static int amount = 100, together = 1, joined, full, poller;
static long total = 2000, seq;
static double rate = 200;
static bool replay;
static char *buffer;
static size_t filled;
static uint64_t sends;
static Connection *connections, listener, timer, input; /* the last three only as identities for epoll */

static bool watch(Connection *c, int operation, uint32_t what) {
  struct epoll_event event = {.events = what, .data.ptr = c};
  return epoll_ctl(poller, operation, c->fd, &event) == 0;
}

/* --- events ------------------------------------------------------------------------------------------------------- */

/* Emit `count` more events as one chunk; after the last one the terminal event and the end of the body. */
static void emit(long count) {
  static char *frames;
  static size_t room;
  size_t size = 0;
  if (room < (size_t)(count + 1) * FRAME_SIZE) {
    room = (size_t)(count + 1) * FRAME_SIZE;
    frames = realloc(frames, room);
  }
  for (; count > 0; count--, seq++) size += (size_t)sprintf(frames + size, FRAME, seq + 1, seq, now());
  if (seq == total) size += (size_t)sprintf(frames + size, ENDING, seq + 1);
  filled += (size_t)sprintf(buffer + filled, "%zx\r\n", size);
  memcpy(buffer + filled, frames, size);
  filled += size;
  filled += (size_t)sprintf(buffer + filled, seq == total ? "\r\n0\r\n\r\n" : "\r\n");
}

static void emit_together(void) { emit(total - seq < together ? total - seq : together); }

/* Emit all due events, and set the timer to the next one. */
static void emit_due(uint64_t began) {
  long due = (long)((double)(now() - began) * rate / 1e6) + 1;
  if (due > total) due = total;
  if (due > seq) emit(due - seq);
  uint64_t next = began + (uint64_t)((double)seq * 1e6 / rate) + 1;
  struct itimerspec when = {.it_value = {(time_t)(next / 1000000), (long)(next % 1000000) * 1000}};
  timerfd_settime(timer.fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* --- connections -------------------------------------------------------------------------------------------------- */

static void forget(Connection *c) {
  close(c->fd);
  if (c->full) full--;
  c->full = c->streaming = false;
}

static void push(Connection *c) {
  while (c->offset < filled) {
    ssize_t sent = send(c->fd, buffer + c->offset, filled - c->offset, MSG_NOSIGNAL | MSG_DONTWAIT);
    sends++;
    if (sent >= 0) {
      c->offset += (size_t)sent;
    } else if (errno == EAGAIN) {
      if (!c->full) watch(c, EPOLL_CTL_MOD, EPOLLOUT), full++;
      c->full = true;
      return;
    } else {
      forget(c); /* it is complete, or reports the error itself */
      return;
    }
  }
  if (c->full) watch(c, EPOLL_CTL_MOD, 0), full--;
  c->full = false;
}

static void push_all(void) {
  for (int i = 0; i < joined; i++)
    if (!connections[i].full && connections[i].streaming) push(&connections[i]);
}

static void accept_all(void) {
  static int accepted;
  int fd, on = 1;
  while (accepted < amount && (fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Connection *c = &connections[accepted++];
    c->fd = fd;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void read_request(Connection *c) {
  char byte;
  while (recv(c->fd, &byte, 1, 0) == 1) {
    memmove(c->last, c->last + 1, 3);
    c->last[3] = byte;
    if (memcmp(c->last, "\r\n\r\n", 4)) continue;
    c->streaming = true;
    joined++;
    watch(c, EPOLL_CTL_MOD, 0);
    if (send(c->fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL) < 0) exit(1);
    if (replay) push(c);
    return;
  }
}

/* --- the run ------------------------------------------------------------------------------------------------------ */

static void listen_on(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  int on = 1;
  listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener.fd, (struct sockaddr *)&address, size) || listen(listener.fd, 4096)) {
    perror("listen");
    exit(2);
  }
  getsockname(listener.fd, (struct sockaddr *)&address, &size);
  watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
  printf("LISTENING %d\n", ntohs(address.sin_port));
  fflush(stdout);
}

static void run(void) {
  static struct epoll_event found[1024];
  uint64_t began = 0, sends_before = 0, ticks;
  double cpu_before = 0;
  bool announced = false;
  do {
    bool busy = began && rate == 0 && seq < total;
    int count = epoll_wait(poller, found, 1024, busy ? 0 : -1);
    bool go = false;
    for (int i = 0; i < count; i++) {
      Connection *c = found[i].data.ptr;
      if (c == &listener) {
        accept_all();
        go = go || replay;
      } else if (c == &timer) {
        if (read(timer.fd, &ticks, sizeof ticks) < 0) continue;
      } else if (c == &input) {
        go = true;
        watch(c, EPOLL_CTL_DEL, 0);
      } else if (found[i].events & (EPOLLHUP | EPOLLERR)) {
        forget(c);
      } else if (!c->streaming) {
        read_request(c);
      } else {
        push(c);
      }
    }
    if (joined == amount && !announced) {
      announced = true;
      printf("READY\n");
      fflush(stdout);
      if (!replay && !watch(&input, EPOLL_CTL_ADD, EPOLLIN)) go = true; /* /dev/null or a file: start now */
    }
    if (go && !began) began = now(), cpu_before = cpu(), sends_before = sends;
    if (began && seq < total) {
      if (rate > 0)
        emit_due(began);
      else
        emit_together();
      push_all();
    }
  } while (seq < total || joined < amount || full);
  double seconds = (double)(now() - began) / 1e6, spent = cpu() - cpu_before;
  uint64_t made = sends - sends_before;
  double deliveries = (double)total * amount;
  printf("{\"seconds\":%.4f,\"deliveries\":%.0f,\"deliveries_s\":%.0f,\"sends\":%lu,\"cpu_s\":%.3f,", seconds,
         deliveries, deliveries / seconds, made, spent);
  printf("\"us_per_send\":%.3f}\n", spent * 1e6 / (double)(made + !made));
}

int main(int count, char **arguments) {
  int option, port = 0;
  while ((option = getopt(count, arguments, "p:n:e:r:k:R")) != -1) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'n': amount = atoi(optarg); break;
      case 'e': total = atol(optarg); break;
      case 'r': rate = atof(optarg); break;
      case 'k': together = atoi(optarg); break;
      case 'R': replay = true; break;
      default: fprintf(stderr, "The options are documented at the top of fanout.c.\n"); return 2;
    }
  raise_file_limit();
  signal(SIGPIPE, SIG_IGN);
  connections = calloc((size_t)amount, sizeof *connections);
  buffer = malloc((size_t)total * (FRAME_SIZE + CHUNK_SIZE) + 4096);
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer.fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
  watch(&timer, EPOLL_CTL_ADD, EPOLLIN);
  while (replay && seq < total) emit_together();
  listen_on(port);
  run();
  return 0;
}
