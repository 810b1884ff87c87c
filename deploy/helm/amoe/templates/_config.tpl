{{/* The configuration files of the processes: what the chart knows, `config` of the role over it, as TOML. */}}

{{/* Takes `root` and `role`. */}}
{{- define "amoe.config" -}}
{{- $values := .root.Values -}}
{{- $base := include (printf "amoe.config.%s" .role) .root | fromYaml -}}
{{- $every := dict
      "admin" (dict "address" "0.0.0.0:9464")
      "telemetry" $values.telemetry
      "shutdown" (dict "drain_ms" (mul 1000 (int $values.shutdown.drainSeconds))) -}}
{{- if include "amoe.tls" .root -}}
{{- $_ := set $every "tls" (dict "certificate" "/certs/tls.crt" "key" "/certs/tls.key" "authority" "/certs/ca.crt") -}}
{{- if $values.tls.admin -}}{{- $_ := set $every.admin "tls" true -}}{{- end -}}
{{- end -}}
{{- if $values.tracing.endpoint -}}
{{- $_ := set $every "tracing" (dict "otlp_endpoint" $values.tracing.endpoint "ratio" $values.tracing.ratio) -}}
{{- end -}}
{{- if and (eq .role "coordinator") $values.etcd.tls.secret -}}
{{- $store := dict "authority" "/etcd-certs/ca.crt" -}}
{{- if $values.etcd.tls.clientCertificate -}}
{{- $_ := mergeOverwrite $store (dict "certificate" "/etcd-certs/tls.crt" "key" "/etcd-certs/tls.key") -}}
{{- end -}}
{{- $_ := set $every "store.tls" $store -}}
{{- end -}}
{{- if $values.keys.secret -}}
{{- $_ := set $every "keys" (dict "file" (printf "/keys/%s" $values.keys.file)) -}}
{{- end -}}
{{- if and (eq .role "gateway") $values.tls.publicSecret -}}
{{- $_ := set $every "public_tls" (dict "certificate" "/public-certs/tls.crt" "key" "/public-certs/tls.key") -}}
{{- end -}}
{{- $own := get $values .role -}}
{{- include "amoe.toml" (mergeOverwrite $every $base (deepCopy $own.config)) | trim -}}
{{- end -}}

{{- define "amoe.config.gateway" -}}
model:
  path: {{ .Values.model.path | quote }}
  served_names: {{ toJson .Values.model.servedNames }}
cluster:
  {{- /* Replaced by the pod's name. */}}
  name: gateway
  coordinators: [{{ include "amoe.fullname" . }}-coordinator:7400]
server: {address: "0.0.0.0:8000"}
{{- end -}}

{{- define "amoe.config.coordinator" -}}
control:
  listen: 0.0.0.0:7400
  {{- /* Replaced by the pod's address. */}}
  advertise: coordinator:7400
cluster: {expert_nodes_min: {{ int .Values.coordinator.expertNodesMin }}}
store:
  kind: etcd
  endpoints: {{ include "amoe.etcdEndpoints" . }}
  prefix: {{ .Values.etcd.prefix | default (printf "amoe/%s/%s/" .Release.Namespace (include "amoe.fullname" .)) | quote }}
{{- end -}}

{{- define "amoe.config.attention" -}}
node: {name: attention, listen: "0.0.0.0:7500", schedule: {{ .Values.schedule }}}
{{ include "amoe.config.node" . }}
{{- end -}}

{{- define "amoe.config.expert" -}}
node: {name: expert, listen: "0.0.0.0:7600", schedule: {{ .Values.schedule }}}
{{ include "amoe.config.node" . }}
{{- end -}}

{{- define "amoe.config.node" -}}
cluster: {coordinators: [{{ include "amoe.fullname" . }}-coordinator:7400]}
model: {path: {{ .Values.model.path | quote }}}
{{- end -}}

{{- define "amoe.toml" -}}
{{- range $section, $keys := . }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "amoe.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end -}}

{{/* Numbers of values are floats to Helm, also where they are whole. JSON's texts and lists are TOML's. */}}
{{- define "amoe.tomlValue" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}
