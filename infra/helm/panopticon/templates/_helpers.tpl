{{- define "panopticon.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "panopticon.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "panopticon.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "panopticon.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "panopticon.selector" -}}
app.kubernetes.io/name: {{ include "panopticon.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "panopticon.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "panopticon.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "panopticon.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "panopticon.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "panopticon.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* A setting's value as the environment has it: text that would be read as something else is quoted. */}}
{{- define "panopticon.value" -}}
{{- if kindIs "string" . -}}
{{- if regexMatch "^([0-9+.-].*|true|false|[\\[{\"'].*)$" . -}}{{ . | toJson }}{{- else -}}{{ . }}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- toJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else -}}
{{- /* Helm reads every number as a float; settings have whole ones. */ -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{/* The settings below a key as variables: [prefix, settings]. */}}
{{- define "panopticon.settings" -}}
{{- $prefix := index . 0 -}}
{{- range $key, $value := index . 1 }}
{{- $name := printf "%s%s" $prefix (upper $key) }}
{{- if kindIs "map" $value }}
{{- include "panopticon.settings" (list (printf "%s__" $name) $value) }}
{{- else if not (kindIs "invalid" $value) }}
{{ $name }}: {{ include "panopticon.value" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* All settings as variables. */}}
{{- define "panopticon.environment" -}}
{{- range $own := list "engine" "listen" "metrics_listen" "data_dir" "migrate_at_start" }}
{{- if hasKey $.Values.config $own }}{{ fail (printf "config.%s is set by the chart" $own) }}{{ end }}
{{- end -}}
{{- range $secret := list "admin_token" "apps" "secrets.key" "redis.url" "redis.password" "redis.sentinel_password" "clickhouse.password" "kafka.password" "kafka.properties" }}
{{- $path := splitList "." $secret }}
{{- $within := $.Values.config }}
{{- range initial $path }}{{ $within = get $within . | default dict }}{{ end }}
{{- if hasKey $within (last $path) }}{{ fail (printf "config.%s is a secret and would lie open in a ConfigMap: it comes from the Secret `secrets.existingSecret`" $secret) }}{{ end }}
{{- end -}}
PANOPTICON_ENGINE: distributed
PANOPTICON_LISTEN: 0.0.0.0:7420
PANOPTICON_METRICS_LISTEN: 0.0.0.0:7421
PANOPTICON_DATA_DIR: /tmp/panopticon
PANOPTICON_MIGRATE_AT_START: {{ not .Values.migrate.enabled | quote }}
{{- include "panopticon.settings" (list "PANOPTICON_" .Values.config) }}
{{- end -}}

{{/* Variables from the Secret: [root, what is needed]. */}}
{{- define "panopticon.secretEnvironment" -}}
{{- $root := index . 0 -}}
{{- $names := dict "secretsKey" "SECRETS__KEY" "adminToken" "ADMIN_TOKEN" "redisUrl" "REDIS__URL" "redisPassword" "REDIS__PASSWORD" "redisSentinelPassword" "REDIS__SENTINEL_PASSWORD" "clickhousePassword" "CLICKHOUSE__PASSWORD" "kafkaPassword" "KAFKA__PASSWORD" "kafkaProperties" "KAFKA__PROPERTIES" -}}
{{- range $secret := index . 1 }}
{{- with index $root.Values.secrets.keys $secret }}
- name: PANOPTICON_{{ index $names $secret }}
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.secrets.existingSecret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The files of TLS, where the settings `…ca_file` and the like look for them. */}}
{{- define "panopticon.tlsMount" -}}
{{- if .Values.secrets.tlsSecret -}}
- {name: tls, mountPath: /etc/panopticon/tls, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "panopticon.tlsVolume" -}}
{{- with .Values.secrets.tlsSecret -}}
- name: tls
  secret:
    secretName: {{ . }}
{{- end -}}
{{- end -}}

{{/* The time that a pod has to end: what the processes take, and what comes before and after. */}}
{{- define "panopticon.graceSeconds" -}}
{{- $drain := 10000 -}}
{{- with .Values.config.stages }}{{ with .drain_timeout_ms }}{{ $drain = int64 . }}{{ end }}{{ end -}}
{{- add (div (add $drain 999) 1000) .Values.preStopSeconds 10 -}}
{{- end -}}
