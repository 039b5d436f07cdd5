-- The store inserts some blocks a second into each of these, all the time. As ClickHouse comes, it has little to do
-- otherwise and merges them in twos and threes: half of its work. With a larger base it waits for more parts, and
-- writes a row again less often; a partition has some dozens of parts more, which questions hardly notice.
ALTER TABLE traces MODIFY SETTING merge_selector_base = 20;
ALTER TABLE usage_15m MODIFY SETTING merge_selector_base = 20;
ALTER TABLE usage_daily MODIFY SETTING merge_selector_base = 20;
