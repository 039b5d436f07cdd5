//! An app's traces in the order in which they were received, for whoever looks at all of them again.

use panopticon_core::{ids::ClientId, store::Parts, time::Time, trace::AcceptedTrace};

use super::{
    filter::Filter,
    parts::in_parts,
    server::Server,
    traces::{COLUMNS, RECEIVED, TraceRow},
};

pub(super) fn arrivals(
    server: Server,
    client_id: &ClientId,
    since: Time,
    until: Time,
    raw_from: Time,
) -> Parts<AcceptedTrace> {
    let mut filter = Filter::default();
    filter.text("client_id = {client_id:String}", "client_id", client_id);
    filter.time(RECEIVED, "raw_from", raw_from);
    filter.time("received_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    filter.time("received_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')", "until", until);
    let sql = format!(
        "SELECT {COLUMNS} FROM traces WHERE {} ORDER BY received_at, log_partition, log_offset, log_index",
        filter.sql()
    );
    let query = filter.bind(server.query(&sql));
    in_parts(server, query, TraceRow::into_trace)
}
