CREATE TABLE IF NOT EXISTS results (
    webhook_id text PRIMARY KEY,
    generation text NOT NULL,
    status     text NOT NULL,
    text       text,
    usage      jsonb,
    error      jsonb,
    metadata   jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL
);
