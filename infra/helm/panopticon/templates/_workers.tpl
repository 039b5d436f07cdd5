{{/*
What the workers are: program, whether it serves requests, what it needs of the Secret, and which groups it is a
member of with the topics that they read (core/src/stage/groups.rs).
*/}}
{{- define "panopticon.workers" -}}
ingest-gateway:
  command: [ingest-gateway]
  serves: true
  secrets: [kafkaPassword, kafkaProperties, redisUrl, redisPassword, redisSentinelPassword, clickhousePassword, secretsKey]
dedupe:
  command: [stream-workers, --role, dedupe]
  secrets: [kafkaPassword, kafkaProperties, redisUrl, redisPassword, redisSentinelPassword, clickhousePassword]
  groups:
    dedupe: traces.raw
store:
  command: [stream-workers, --role, store]
  secrets: [kafkaPassword, kafkaProperties, clickhousePassword]
  groups:
    store: traces
    store-detections: detections
    store-guard-actions: guard-actions
    store-webhook-deliveries: webhook-deliveries
    store-audit: audit
anomaly-detector:
  command: [anomaly-detector]
  secrets: [kafkaPassword, kafkaProperties, clickhousePassword]
  groups:
    detector: traces
    detector-sources: denials
    detector-apps: rollups
guard-enforcer:
  command: [guard-enforcer]
  secrets: [kafkaPassword, kafkaProperties]
  groups:
    rate-limit: traces
    guard-actions: detections
webhook-dispatcher:
  command: [webhook-dispatcher]
  secrets: [kafkaPassword, kafkaProperties, secretsKey]
  groups:
    webhook-dispatcher: guard-actions
control-room:
  command: [control-room]
  serves: true
  secrets: [kafkaPassword, kafkaProperties, clickhousePassword, secretsKey, adminToken]
{{- end -}}

{{/* Whether something else than this chart says how many replicas a worker has: [root, worker, its values]. */}}
{{- define "panopticon.isScaled" -}}
{{- $root := index . 0 -}}
{{- $autoscaling := (index . 2).autoscaling | default dict -}}
{{- if and $autoscaling.enabled (or (index . 1).serves $root.Values.keda.enabled) -}}yes{{- end -}}
{{- end -}}
