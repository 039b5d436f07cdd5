//! The groups of an installation: which stage reads what. For showing how far each is behind.

use crate::topic::Topic;

/// Every stage's name and what it reads, in the order in which a trace meets them.
pub const GROUPS: [(&str, Topic); 12] = [
    ("dedupe", Topic::TracesRaw),
    ("store", Topic::Traces),
    ("rate-limit", Topic::Traces),
    ("detector", Topic::Traces),
    ("detector-sources", Topic::Denials),
    ("detector-apps", Topic::Rollups),
    ("guard-actions", Topic::Detections),
    ("webhook-dispatcher", Topic::GuardActions),
    ("store-detections", Topic::Detections),
    ("store-guard-actions", Topic::GuardActions),
    ("store-webhook-deliveries", Topic::WebhookDeliveries),
    ("store-audit", Topic::Audit),
];
