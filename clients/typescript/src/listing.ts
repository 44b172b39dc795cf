/** Lists of generations: their conditions, and their pages. */

import type { Query } from "./transport.js";
import type { Ending, GenerationSummary, Page, Status } from "./types.js";

/** A Date, unix seconds, or ISO 8601. */
export type Time = Date | number | string;

/** Conditions of generations. All of them must be met. */
export interface Conditions {
  /** It has this status, or one of these. */
  readonly status?: Ending | readonly Ending[] | undefined;
  /** It failed with this error code. */
  readonly code?: string | undefined;
  readonly group?: string | undefined;
  /** It was created at this time or later. */
  readonly since?: Time | undefined;
  /** It was created before this time. */
  readonly until?: Time | undefined;
  /** For operators. */
  readonly tenant?: string | undefined;
}

export interface ListFilters extends Omit<Conditions, "status"> {
  /** It has this status, or one of these. */
  readonly status?: Status | readonly Status[] | undefined;
  readonly model?: string | undefined;
  /** Its metadata contains these pairs. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
  /** Size of a page, 1 to 100. Default: 20. */
  readonly limit?: number | undefined;
  /** `last_id` of the page before. */
  readonly after?: string | undefined;
}

/** A list of generations that is read when it is used: `await` gives its first page, `for await` all generations. */
export class Listing implements PromiseLike<Page>, AsyncIterable<GenerationSummary> {
  readonly #page: (after?: string) => Promise<Page>;

  constructor(page: (after?: string) => Promise<Page>) {
    this.#page = page;
  }

  then<Result = Page, Failure = never>(
    onfulfilled?: ((page: Page) => Result | PromiseLike<Result>) | null,
    onrejected?: ((reason: unknown) => Failure | PromiseLike<Failure>) | null,
  ): Promise<Result | Failure> {
    return this.#page().then(onfulfilled, onrejected);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GenerationSummary, void, undefined> {
    let after: string | undefined;
    for (;;) {
      const page = await this.#page(after);
      yield* page.data;
      // With filters it can be an id that is not on the page.
      const last = page.last_id ?? page.data.at(-1)?.id;
      if (!page.has_more || last === undefined) return;
      after = last;
    }
  }
}

/** The query of a list. */
export function queryOf(filters: ListFilters): Query {
  const { status, metadata, since, until, limit } = filters;
  return [
    ...listOf(status).map((one) => ["status", one] as const),
    ...pair("model", filters.model),
    ...pair("code", filters.code),
    ...pair("group", filters.group),
    ...Object.entries(metadata ?? {}).map(([key, value]) => [`metadata[${key}]`, value] as const),
    ...pair("since", timeOf(since)?.toString()),
    ...pair("until", timeOf(until)?.toString()),
    ...pair("limit", limit?.toString()),
    ...pair("after", filters.after),
    ...pair("tenant", filters.tenant),
  ];
}

/** The conditions of a bulk retry, as it takes them. */
export const retryBodyOf = ({
  status,
  since,
  until,
  ...conditions
}: Conditions): Readonly<Record<string, unknown>> => ({
  ...conditions,
  status,
  since: timeOf(since),
  until: timeOf(until),
});

/** A query parameter, if it has a value. */
export const pair = (name: string, value: string | undefined): Query => (value === undefined ? [] : [[name, value]]);

export const replaced = (query: Query, name: string, value: string): Query => [
  ...query.filter(([each]) => each !== name),
  [name, value],
];

const listOf = <T>(value: T | readonly T[] | undefined): readonly T[] =>
  value === undefined ? [] : Array.isArray(value) ? (value as readonly T[]) : [value as T];

/** A time as the gateway takes it: unix seconds, or ISO 8601. */
export const timeOf = (time: Time | undefined): number | string | undefined =>
  time instanceof Date ? time.getTime() / 1000 : time;
