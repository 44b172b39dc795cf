/* The figures of the load client, and their output. */
#include <stdint.h>
#include <stdio.h>

/* Microseconds in 64 classes per power of two: a percentile is at most 1.6 % too low. */
#define CLASSES (64 * 48)
typedef struct {
  uint64_t count[CLASSES], total, max;
} Histogram;

static void note(Histogram *histogram, uint64_t value) {
  int class = (int)value;
  if (value >= 64) {
    int exponent = 63 - __builtin_clzll(value);
    class = (exponent - 5) * 64 + (int)((value >> (exponent - 6)) & 63);
    if (class >= CLASSES) class = CLASSES - 1;
  }
  histogram->count[class]++;
  histogram->total++;
  if (value > histogram->max) histogram->max = value;
}

static uint64_t percentile(const Histogram *histogram, double share) {
  uint64_t wanted = (uint64_t)(share * (double)histogram->total), below = 0;
  for (int class = 0; class < CLASSES; class++) {
    below += histogram->count[class];
    if (below > wanted) return class < 64 ? (uint64_t)class : (uint64_t)(64 + (class & 63)) << (class / 64 - 1);
  }
  return histogram->max;
}

static Histogram latency, first_event, span; /* per event; from request to first event; from request to completion */
static uint64_t events, gaps, duplicates, bytes, reads, first_at, last_at;
static int connected, complete, ended_early, http_errors, connection_errors;

/* `ready` is 0 if never ready; `timeouts` is the number of connections without an outcome. */
static void report(int amount, int timeouts, uint64_t started, uint64_t ready) {
  double seconds = last_at > first_at ? (double)(last_at - first_at) / 1e6 : 1e-6;
  double mb = events ? (double)bytes / 1e6 : 0; /* no rate if only headers and heartbeats were received */
  printf("{\"conns\":%d,\"connected\":%d,\"connect_s\":%.4f,\"complete\":%d,\"eof_early\":%d,\"http_err\":%d,"
         "\"conn_err\":%d,\"timeouts\":%d,\"events\":%lu,\"gaps\":%lu,\"dups\":%lu,",
         amount, connected, ready ? (double)(ready - started) / 1e6 : -1.0, complete, ended_early, http_errors,
         connection_errors, timeouts, events, gaps, duplicates);
  printf("\"first_last_s\":%.4f,\"ev_s\":%.0f,\"mb_s\":%.2f,\"bytes\":%lu,\"recvs\":%lu,", seconds,
         (double)events / seconds, mb / seconds, bytes, reads);
  printf("\"lat_us\":{\"p50\":%lu,\"p90\":%lu,\"p99\":%lu,\"p999\":%lu,\"max\":%lu},", percentile(&latency, .5),
         percentile(&latency, .9), percentile(&latency, .99), percentile(&latency, .999), latency.max);
  printf("\"ttfb_us\":{\"p50\":%lu,\"p99\":%lu,\"max\":%lu},", percentile(&first_event, .5),
         percentile(&first_event, .99), first_event.max);
  printf("\"span_s\":{\"p50\":%.4f,\"p99\":%.4f,\"max\":%.4f},", (double)percentile(&span, .5) / 1e6,
         (double)percentile(&span, .99) / 1e6, (double)span.max / 1e6);
  printf("\"cpu_s\":%.3f,\"start_us\":%lu,\"ready_us\":%lu,\"first_us\":%lu,\"last_us\":%lu}\n", cpu(), started, ready,
         first_at, last_at);
}
