// The queue: how much waits at which upstreams and why, which generations wait, and what is paused.

import { ask, now } from "../data/gateway.js";
import { isOperator, pause, resume } from "../data/operator.js";
import { confirmed } from "../ui/confirm.js";
import { age, byId, moment, show, tell } from "../ui/page.js";
import { Polled } from "../ui/polled.js";
import { Rows } from "../ui/rows.js";
import { clock, reasonOf } from "../ui/waiting.js";

const MOST = 100; // listed generations

/** "upstream gabforge" → what a request for it names. */
function partOf(paused) {
  const [, kind, name] = paused.match(/^(upstream|tenant) (.*)$/s) ?? [];
  return kind ? { [kind]: name } : {};
}

const showRetry = (node, { retry_at }) => show(node, retry_at ? clock(retry_at) : "–");

export class QueueView extends Polled {
  constructor() {
    super("queue");
    this.levels = new Rows(byId("queue-levels"), "queue-level", {
      key: ({ upstreams, priority, reason }) => `${priority}:${reason}:${upstreams.join()}`,
      fill: (fields, level) => this.#level(fields, level),
    });
    this.waiting = new Rows(byId("queue-waiting"), "queue-generation", {
      key: ({ id }) => id,
      fill: (fields, generation) => this.#generation(fields, generation),
    });
    this.paused = new Rows(byId("queue-paused"), "queue-pause", {
      key: (name) => name,
      fill: (fields, name) => {
        show(fields.name, name === "all" ? "The whole queue is paused." : `Paused: ${name}.`);
        fields.resume.hidden = !this.operator;
        fields.resume.ariaLabel = name === "all" ? "Resume the whole queue" : `Resume ${name}`;
      },
      begin: (row) => row.fields.resume.addEventListener("click", () => this.#resume(row.item)),
    });
    byId("queue-pause-all").addEventListener("click", () => this.#pause());
  }

  async load() {
    const [queue, waiting, operator] = await Promise.all([
      ask("/v1/queue"),
      ask(`/v1/generations?status=queued&limit=${MOST}`),
      isOperator(),
    ]);
    this.operator = operator;
    byId("queue-pause-all").hidden = !this.operator || queue.paused.includes("all");
    const later = queue.by_reason.scheduled ?? 0;
    show(byId("queue-depth"), `${queue.depth} waiting${later ? `, ${later} of them until a set time` : ""}`);
    this.paused.show(queue.paused);
    this.levels.show(queue.levels.toSorted((a, b) => a.priority - b.priority));
    byId("queue-levels-table").hidden = !queue.levels.length;
    const listed = waiting.data.filter((one) => one.queue).toSorted(before);
    this.waiting.show(listed);
    byId("queue-waiting-table").hidden = !listed.length;
    const none = queue.depth ? "Generations of other tenants wait; they are not listed." : "Nothing waits.";
    const cut = waiting.has_more ? `The newest ${MOST} of your waiting generations are listed.` : "";
    tell(byId("queue-state"), listed.length ? cut : none);
  }

  #level(fields, level) {
    show(fields.upstreams, level.upstreams.join(", "));
    show(fields.priority, String(level.priority));
    show(fields.waiting, String(level.waiting));
    show(fields.reason, reasonOf(level));
    showRetry(fields.retry, level);
  }

  #generation(fields, { id, model, priority, queue, created_at, tenant }) {
    fields.link.href = `#/${id}`;
    show(fields.link, id);
    show(fields.position, queue.position ? String(queue.position) : "–");
    show(fields.model, model);
    show(fields.tenant, tenant ? ` (${tenant})` : "");
    show(fields.priority, String(priority));
    show(fields.reason, reasonOf(queue));
    show(fields.since, age(now() / 1000 - created_at));
    fields.since.title = moment(created_at).toLocaleString();
    showRetry(fields.retry, queue);
  }

  async #pause() {
    const text = "Pause the whole queue? Nothing starts until it is resumed; running generations continue.";
    if (await confirmed(text, "Pause the queue")) await this.act(() => pause({}));
  }

  async #resume(name) {
    const what = name === "all" ? "the whole queue" : name;
    if (await confirmed(`Resume ${what}?`, "Resume")) await this.act(() => resume(partOf(name)));
  }
}

/** Orders by priority, then by position, then by age. */
function before(a, b) {
  const place = ({ queue }) => queue.position ?? Infinity;
  return a.priority - b.priority || (place(a) === place(b) ? a.created_at - b.created_at : place(a) - place(b));
}
