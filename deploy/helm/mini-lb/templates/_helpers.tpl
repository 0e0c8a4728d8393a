{{- define "mini-lb.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "mini-lb.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "mini-lb.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "mini-lb.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "mini-lb.selector" -}}
app.kubernetes.io/name: {{ include "mini-lb.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mini-lb.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "mini-lb.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "mini-lb.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mini-lb.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mini-lb.namespace" -}}
{{- default .Release.Namespace .Values.discovery.namespace -}}
{{- end -}}

{{/* The configuration file as JSON: what the chart sets, overridden by `config`. */}}
{{- define "mini-lb.config" -}}
{{- $config := dict "port" 30000 "watch_config" true "shutdown_grace_period_secs" .Values.shutdown.gracePeriodSecs "drain_settle_secs" .Values.shutdown.drainSettleSecs -}}
{{- with .Values.discovery -}}
{{- if .enabled -}}
{{- $_ := set $config "service_discovery" true -}}
{{- $_ := set $config "service_discovery_kind" .kind -}}
{{- $_ := set $config "service_discovery_namespace" (include "mini-lb.namespace" $) -}}
{{- $_ := set $config "service_discovery_port" .port -}}
{{- $_ := set $config "prefill_selector" .prefillSelector -}}
{{- $_ := set $config "decode_selector" .decodeSelector -}}
{{- end -}}
{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.config) | toJson -}}
{{- end -}}

{{/* The keys that a reload takes. A test compares them with the program. */}}
{{- define "mini-lb.reloaded" -}}
tls_cert_path tls_key_path max_connections max_connections_per_ip max_payload_size
request_timeout_secs head_timeout_secs body_timeout_secs client_stall_timeout_secs
client_idle_timeout_secs stream_keepalive_secs max_inflight_requests max_samples
max_buffered_body_bytes max_top_logprobs api_key api_key_file cors_allowed_origins server_timing
allow_target_headers admin_api_key prefill decode policy prefill_policy decode_policy session_header
load_poll_interval_secs worker_api_key_file worker_admin_api_key_file max_concurrent_requests
queue_size queue_timeout_secs first_token_timeout_secs stream_idle_timeout_secs stream_timeout_secs
http2 retry_max_retries vllm_decode_alone kv_connector vllm_kv_lease_secs disable_retries cb_failure_threshold cb_window_duration_secs
cb_timeout_duration_secs cb_success_threshold slow_start_secs disable_circuit_breaker
health_check_interval_secs health_check_timeout_secs health_check_endpoint disable_health_check
disable_abort_requests shutdown_grace_period_secs drain_settle_secs log_level
disable_log_client_address
{{- end -}}

{{/* The configuration without them, as JSON: a change needs a new process. */}}
{{- define "mini-lb.atStart" -}}
{{- $config := include "mini-lb.config" . | fromJson -}}
{{- range regexSplit "\\s+" (include "mini-lb.reloaded" . | trim) -1 -}}
{{- $config = omit $config . -}}
{{- end -}}
{{- $config | toJson -}}
{{- end -}}
