-- Usage as analysts ask for it, by UTC date. `errors` counts error and denied, `denied` those of them that
-- were refused; `duration_ms` is the sum.
CREATE VIEW IF NOT EXISTS usage_by_app_day AS
SELECT
    u.client_id AS client_id,
    u.date AS date,
    sum(u.traces) AS traces,
    sumIf(u.traces, u.status != 'ok') AS errors,
    sumIf(u.traces, u.status = 'denied') AS denied,
    sum(u.duration_ms) AS duration_ms
FROM usage_daily AS u
GROUP BY client_id, date;

CREATE VIEW IF NOT EXISTS usage_by_tool_day AS
SELECT
    u.client_id AS client_id,
    u.date AS date,
    u.tool AS tool,
    sum(u.traces) AS traces,
    sumIf(u.traces, u.status != 'ok') AS errors,
    sumIf(u.traces, u.status = 'denied') AS denied,
    sum(u.duration_ms) AS duration_ms
FROM usage_daily AS u
GROUP BY client_id, date, tool;

CREATE VIEW IF NOT EXISTS usage_by_scope_day AS
SELECT
    u.client_id AS client_id,
    u.date AS date,
    u.scope_used AS scope_used,
    sum(u.traces) AS traces,
    sumIf(u.traces, u.status != 'ok') AS errors,
    sumIf(u.traces, u.status = 'denied') AS denied,
    sum(u.duration_ms) AS duration_ms
FROM usage_daily AS u
GROUP BY client_id, date, scope_used;

CREATE VIEW IF NOT EXISTS usage_by_user_day AS
SELECT
    u.client_id AS client_id,
    toDate(u.bucket) AS date,
    u.user_sub AS user_sub,
    sum(u.traces) AS traces,
    sumIf(u.traces, u.status != 'ok') AS errors,
    sumIf(u.traces, u.status = 'denied') AS denied,
    sum(u.duration_ms) AS duration_ms
FROM usage_15m AS u
GROUP BY client_id, date, user_sub;
